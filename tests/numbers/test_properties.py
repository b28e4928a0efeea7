"""What holds for any input, drawn by hypothesis: the contract, shifts, permutations of classes and of rows, gradients
that sum to zero, blocks of classes that merge, linearity in targets and weights, Jacobians. Tolerances are the
contract's."""

from __future__ import annotations

import numpy as np
import pytest
from functions import DTYPES, FAMILIES, INDEX, MAPS, ONE_TERM, PROBABILITIES, PRODUCTS, SIGMOID, TWO_TERM, check, over
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import CONTRACT_ULPS, LD, OPTION_ULPS, needs_longdouble

import fastce

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
OF_EACH_FAMILY = settings(SETTINGS, max_examples=40)
F32, F64, INF, NAN = np.float32, np.float64, np.inf, np.nan
LABEL_DTYPES = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u8"]


@st.composite
def logits(draw, min_classes=1, masked=True):
    """(n, C), of numbers near 0, large, repeated or masked. Every row has a number."""
    dtype = draw(st.sampled_from(DTYPES))
    width = np.finfo(dtype).bits
    shape = draw(st.integers(1, 6)), draw(st.integers(min_classes, 12) | st.sampled_from([63, 64, 65, 66, 130]))
    values = st.floats(-60, 60, width=width) | st.sampled_from([0.0, -0.0, 1.0, 1e-6, 500.0, -500.0, 1e4])
    if masked:
        values |= st.just(-INF)
    values = values.map(lambda value: float(dtype(value)))
    x = draw(hnp.arrays(dtype, shape, elements=values, fill=st.floats(-3, 3, width=width)))
    x[np.isneginf(x).all(axis=1), 0] = 0
    return x


@st.composite
def targets_like(draw, x):
    """Of the shape of the logits, many of them 0 and 1."""
    numbers = st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=np.finfo(x.dtype).bits)
    return draw(hnp.arrays(x.dtype, x.shape, elements=numbers, fill=st.just(0.0)))


@st.composite
def calls(draw, families, **how):
    """A family, and logits and, if it has some, targets for it."""
    family = draw(st.sampled_from(families))
    x = draw(logits(min_classes=2 if family is TWO_TERM else 1, **how))
    if family is INDEX:
        return family, x, draw(hnp.arrays(np.int64, len(x), elements=st.integers(0, x.shape[1] - 1)))
    return (family, x, draw(targets_like(x))) if family.names[1:] else (family, x)


def _room(x, ulps=CONTRACT_ULPS):
    """(4 + distance from the maximum) eps of each element; masked classes count as maxima."""
    distance = x.max(axis=1, keepdims=True) - x
    return (ulps + np.where(np.isfinite(distance), distance, 0)) * np.finfo(x.dtype).eps


def _gap(x):
    """To the runner-up, or 0 if there is none."""
    gap = x.max(axis=1) - np.sort(x, axis=1)[:, -2:].min(axis=1)
    return np.where(np.isfinite(gap), gap, 0)


def _probabilities(targets, classes, dtype):
    return targets if targets.ndim == 2 else np.eye(classes, dtype=dtype)[targets]


# ---------------------------------------------------------------------------------------------------------------------
# The contract
# ---------------------------------------------------------------------------------------------------------------------


@needs_longdouble
@over(FAMILIES)
@OF_EACH_FAMILY
@given(data=st.data())
def test_any_call_is_within_the_contract(family, data):
    if family.is_loss:
        _, *arrays = data.draw(calls([family]))
    else:
        x = data.draw(logits())
        arrays = family.arguments(x, seed=data.draw(st.integers(0, 99)))
    check(family, tuple(arrays))
    check(family, tuple(np.asfortranarray(a) for a in arrays))
    check(family, tuple(np.ascontiguousarray(a.T) for a in arrays), axis=0)


@needs_longdouble
@SETTINGS
@given(calls(ONE_TERM), st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 1e-3]))
def test_smoothing_and_z_loss_are_within_the_contract(call, smoothing, z_loss):
    family, *arrays = call
    check(family, tuple(arrays), more=OPTION_ULPS, label_smoothing=smoothing, z_loss=z_loss)
    assert (fastce.cross_entropy(*arrays, label_smoothing=smoothing, z_loss=z_loss, reduction="none") >= 0).all()


# ---------------------------------------------------------------------------------------------------------------------
# Rows, classes, elements
# ---------------------------------------------------------------------------------------------------------------------


@over(FAMILIES)
@OF_EACH_FAMILY
@given(data=st.data())
def test_rows_are_independent(family, data):
    """In any order, and each alone: the same to the bit."""
    arrays = data.draw(calls([family]))[1:] if family.is_loss else family.arguments(data.draw(logits()))
    order = data.draw(st.permutations(range(len(arrays[0]))))
    for function in family.functions:
        got, shuffled = function(*arrays), function(*(a[order] for a in arrays))
        for name, value in got.items():
            np.testing.assert_array_equal(shuffled[name], value[order])
        for i in order:
            for name, value in function(*(a[i] for a in arrays)).items():
                np.testing.assert_array_equal(value, got[name][i])


@SETTINGS
@given(calls([SIGMOID], masked=False), st.data())
def test_elements_of_sigmoid_are_independent(call, data):
    _, x, c = call
    losses, grad = fastce.binary_cross_entropy_with_grad(x, c, reduction="none")
    at = data.draw(st.integers(0, x.shape[0] - 1)), data.draw(st.integers(0, x.shape[1] - 1))
    other = x.copy()
    other[at] = data.draw(st.sampled_from([-3.0, 0.5, 800.0, NAN, INF]))
    changed, changed_grad = fastce.binary_cross_entropy_with_grad(other, c, reduction="none")
    same = np.ones(x.shape, bool)
    same[at] = False
    np.testing.assert_array_equal(changed[same], losses[same])
    np.testing.assert_array_equal(changed_grad[same], grad[same])


@needs_longdouble
@over([INDEX, PROBABILITIES, TWO_TERM, MAPS])
@OF_EACH_FAMILY
@given(data=st.data())
def test_classes_may_be_permuted(family, data):
    arrays = data.draw(calls([family]))[1:] if family.is_loss else (data.draw(logits()),)
    order = data.draw(st.permutations(range(arrays[0].shape[1])))
    want = family.exact(*arrays)
    moved = tuple(a[:, order] if a.ndim == 2 else np.argsort(order)[a] for a in arrays)
    back = np.argsort(order)
    check(family, moved, want=want, back=lambda a: a[:, back] if a.ndim == 2 else a)


@SETTINGS
@given(calls([SIGMOID], masked=False))
def test_sigmoid_is_symmetric(call):
    """sigmoid(-z) = 1 - sigmoid(z): negated logits with swapped targets are the same problem."""
    _, x, c = call
    c = np.round(c * 256) / c.dtype.type(256)  # 1 - c is exact
    losses, grad = fastce.binary_cross_entropy_with_grad(x, c, reduction="none")
    mirrored, mirrored_grad = fastce.binary_cross_entropy_with_grad(-x, 1 - c, reduction="none")
    eps, tiny = np.finfo(x.dtype).eps, 4 * np.finfo(x.dtype).smallest_subnormal
    np.testing.assert_allclose(mirrored, losses, rtol=8 * eps, atol=tiny)
    np.testing.assert_allclose(mirrored_grad, -grad, rtol=8 * eps, atol=8 * eps)
    hard = (c == 0) | (c == 1)
    np.testing.assert_allclose(mirrored_grad[hard], -grad[hard], rtol=8 * eps, atol=tiny)


# ---------------------------------------------------------------------------------------------------------------------
# Shifts
# ---------------------------------------------------------------------------------------------------------------------


@SETTINGS
@given(calls(ONE_TERM), st.integers(-(2**10), 2**10))
def test_a_shift_changes_no_bit_of_cross_entropy(call, shift):
    """Of logits that stay exact: multiples of 1/64 below 2^11 in size. For x - row_max is the same."""
    _, x, targets = call
    x = np.clip(np.round(x * 64) / 64, -512, 512)
    shifted = x + x.dtype.type(shift)
    assert (shifted - x == shift).all()
    got = fastce.cross_entropy_with_grad(x, targets, reduction="none")
    moved = fastce.cross_entropy_with_grad(shifted, targets, reduction="none")
    np.testing.assert_array_equal(moved[0], got[0])
    np.testing.assert_array_equal(moved[1], got[1])


@SETTINGS
@given(logits(), st.integers(-1000, 1000))
def test_a_shift_changes_no_probability(x, shift):
    """By a multiple of the logits' last place, so that the shifted ones are exact."""
    x = np.where(np.isneginf(x), x, np.round(x.astype(F64) / 2**-8) * 2**-8).astype(x.dtype)
    moved = x + x.dtype.type(shift)
    eps, tiny = np.finfo(x.dtype).eps, 4 * np.finfo(x.dtype).smallest_subnormal
    p = fastce.softmax(x)
    assert (np.abs(fastce.softmax(moved) - p) <= 2 * _room(x) * p + tiny).all()
    logp, other = fastce.log_softmax(x), fastce.log_softmax(moved)
    finite = np.isfinite(logp)
    np.testing.assert_array_equal(finite, np.isfinite(other))
    room = np.broadcast_to(2 * (CONTRACT_ULPS + _gap(x))[:, None] * eps, x.shape)
    assert (np.abs(other[finite] - logp[finite]) <= room[finite] * -logp[finite] + 64 * tiny).all()


@SETTINGS
@given(calls([TWO_TERM], masked=False), st.integers(-500, 500))
def test_a_shift_changes_no_two_term_form_of_a_softmax_whose_gradient_sums_to_zero(call, shift):
    _, x, c = call
    x = (np.round(x.astype(F64) / 2**-8) * 2**-8).astype(x.dtype)
    options = {"activation": "softmax", "reduction": "none"}
    loss, grad = fastce.binary_cross_entropy_with_grad(x, c, **options)
    moved, moved_grad = fastce.binary_cross_entropy_with_grad(x + x.dtype.type(shift), c, **options)
    room = 2 * (8 + np.ptp(x, axis=1)) * np.finfo(x.dtype).eps
    tiny = 400 * np.finfo(x.dtype).smallest_subnormal
    assert (np.abs(moved - loss) <= room * loss + tiny).all()
    # the terms of the gradient: each class has up to 1 from its own target, the maximum up to all of them
    size = 3 + c.sum(axis=1) + 2 * x.shape[1]
    assert (np.abs(moved_grad - grad) <= (room * size)[:, None]).all()
    assert (np.abs(grad.sum(axis=1, dtype=F64)) <= room * size).all()
    assert (loss >= 0).all()


@SETTINGS
@given(calls(ONE_TERM), st.sampled_from([0.0, 0.3]))
def test_gradient_of_a_row_sums_to_zero(call, smoothing):
    """A shift changes no loss, so the gradient has no component along it."""
    _, x, targets = call
    grad = fastce.cross_entropy_grad(x, targets, reduction="none", label_smoothing=smoothing)
    dtype = x.dtype.type
    c = (1 - smoothing) * _probabilities(targets, x.shape[1], dtype) + smoothing / x.shape[1]
    # each element has the error of its own two terms, whose sizes sum to Q each; far from the maximum the error of p is
    # (4 + d) eps p, and d*exp(-d) < 1
    room = 2 * (CONTRACT_ULPS + OPTION_ULPS + 1) * np.finfo(dtype).eps * (c.sum(axis=1) + 1)
    assert (np.abs(grad.astype(F64).sum(axis=1)) <= room * np.sqrt(x.shape[1])).all()


# ---------------------------------------------------------------------------------------------------------------------
# Probabilities, logarithms, Jacobians
# ---------------------------------------------------------------------------------------------------------------------


@SETTINGS
@given(logits())
def test_rows_sum_to_one(x):
    p = fastce.softmax(x)
    assert ((p >= 0) & (p <= 1)).all()
    # an element at distance d is within (4 + d) eps, and exp(-d)*d sums to at most 1 + log C of the whole
    room = (6 + np.log(x.shape[1])) * np.finfo(x.dtype).eps
    np.testing.assert_allclose(p.sum(axis=1, dtype=LD).astype(F64), 1, rtol=0, atol=room)
    last, logp = np.log(F64(np.finfo(x.dtype).smallest_subnormal)), fastce.log_softmax(x)
    assert (logp[p == 0] < last).all() and (logp[p > 0] > last - 1).all()  # half a step is rounded up: log 2


@SETTINGS
@given(logits())
def test_logarithms_and_exponentials_agree(x):
    p, logp, lse = fastce.softmax(x), fastce.log_softmax(x), np.asarray(fastce.logsumexp(x))
    assert (logp <= 0).all()
    eps, tiny = np.finfo(x.dtype).eps, np.finfo(x.dtype).tiny
    distance = np.where(np.isfinite(logp), -logp, 0)
    assert (np.abs(np.exp(logp.astype(F64)) - p) <= (10 + 2 * distance) * eps * p + 2 * tiny).all()
    m = x.max(axis=1)
    assert (lse >= m).all()
    assert (lse <= m + np.log(x.shape[1]) + 8 * eps * (np.abs(m) + 5)).all()


@settings(SETTINGS, max_examples=60)
@given(logits(masked=False))
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


@SETTINGS
@given(logits(min_classes=2, masked=False), st.data())
def test_stats_of_two_blocks_of_classes_merge(x, data):
    """The state is associative: with a's maximum the larger, a.tail + (1 + b.tail)*exp(b.row_max - a.row_max)."""
    cut = data.draw(st.integers(1, x.shape[1] - 1))
    labels = np.zeros(len(x), int)
    whole, a, b = (fastce.cross_entropy(block, labels, return_stats=True)[1] for block in (x, x[:, :cut], x[:, cut:]))
    swap = a.row_max < b.row_max
    max_a, max_b = np.where(swap, b.row_max, a.row_max), np.where(swap, a.row_max, b.row_max)
    tail_a, tail_b = np.where(swap, b.tail, a.tail), np.where(swap, a.tail, b.tail)
    merged = tail_a + (1 + tail_b) * np.exp(max_b - max_a)
    np.testing.assert_array_equal(max_a, whole.row_max)
    info = np.finfo(x.dtype)
    room = (2 * CONTRACT_ULPS + np.abs(max_b - max_a)) * info.eps
    assert (np.abs(merged - whole.tail) <= room * whole.tail + x.shape[1] * info.smallest_subnormal).all()


# ---------------------------------------------------------------------------------------------------------------------
# Targets and options
# ---------------------------------------------------------------------------------------------------------------------


@SETTINGS
@given(calls([INDEX]), st.sampled_from([0.0, 0.2]))
def test_an_index_is_its_one_hot_row(call, smoothing):
    _, x, labels = call
    options = {"label_smoothing": smoothing, "reduction": "none"}
    loss, grad = fastce.cross_entropy_with_grad(x, labels, **options)
    one_hot = fastce.one_hot(labels, x.shape[1], dtype=x.dtype)
    other, other_grad = fastce.cross_entropy_with_grad(x, one_hot, **options)
    eps = np.finfo(x.dtype).eps
    gap = np.ptp(np.where(np.isfinite(x), x, 0), axis=1).max()  # at least the gap between the two largest
    # one bound of the contract for each of the two
    np.testing.assert_allclose(other, loss, rtol=2 * (CONTRACT_ULPS + OPTION_ULPS + gap) * eps, atol=1e-44)
    np.testing.assert_allclose(other_grad, grad, rtol=0, atol=2 * (CONTRACT_ULPS + OPTION_ULPS) * eps)


@SETTINGS
@given(calls([PROBABILITIES], masked=False), st.floats(0, 4), st.floats(0, 4))
def test_linear_in_the_targets(call, a, b):
    _, x, c = call
    x, c = x.astype(F64), c.astype(F64)
    d = np.roll(c, 1, axis=1)

    def both(targets):
        return fastce.cross_entropy_with_grad(x, targets, reduction="none")

    (loss_c, grad_c), (loss_d, grad_d), (loss, grad) = both(c), both(d), both(a * c + b * d)
    np.testing.assert_allclose(loss, a * loss_c + b * loss_d, rtol=1e-13, atol=1e-300)
    size = (a * c + b * d).sum(axis=1, keepdims=True)
    assert (np.abs(grad - (a * grad_c + b * grad_d)) <= 1e-14 * size + 1e-300).all()  # subnormal targets are rounded


@SETTINGS
@given(calls(ONE_TERM), st.floats(-100, 100), st.sampled_from(["mean", "sum", "none"]))
def test_gradient_is_linear_in_upstream(call, upstream, reduction):
    _, x, targets = call
    grad = fastce.cross_entropy_grad(x, targets, reduction=reduction)
    scaled = fastce.cross_entropy_grad(x, targets, reduction=reduction, upstream=upstream)
    eps, least = np.finfo(x.dtype).eps, np.finfo(x.dtype).smallest_subnormal
    c = _probabilities(targets, x.shape[1], x.dtype)
    room = 8 * eps * abs(upstream) * (np.abs(grad) + c.sum(axis=1, keepdims=True) + c) + 200 * least
    assert (np.abs(scaled - upstream * grad.astype(F64)) <= room).all()


@SETTINGS
@given(calls(ONE_TERM), st.sampled_from([0.0, 0.1]), st.sampled_from([0.0, 0.01]))
def test_reductions_agree(call, smoothing, z_loss):
    _, x, targets = call
    options = {"label_smoothing": smoothing, "z_loss": z_loss}
    rows = fastce.cross_entropy(x, targets, **options, reduction="none").astype(F64)
    rel = 4 * float(np.finfo(x.dtype).eps)
    total = fastce.cross_entropy(x, targets, **options, reduction="sum")
    assert float(total) == pytest.approx(float(rows.sum()), rel=rel)
    mean = fastce.cross_entropy(x, targets, **options)
    assert float(mean) == pytest.approx(float(rows.sum()) / len(rows), rel=rel)


@SETTINGS
@given(calls(ONE_TERM), st.integers(1, 10))
def test_smoothing_is_a_mixture_of_targets(call, tenths):
    """label_smoothing = eps is (1 - eps) of the loss, plus eps of that of the uniform distribution."""
    _, x, targets = call
    eps, classes = tenths / 10, x.shape[1]
    targets, x = _probabilities(targets, classes, F64), x.astype(F64)
    got = fastce.cross_entropy(x, targets, label_smoothing=eps, reduction="none")
    plain, even = (fastce.cross_entropy(x, c, reduction="none") for c in (targets, np.full(x.shape, 1 / classes)))
    with np.errstate(invalid="ignore"):
        expected = np.where(eps == 1, 0, (1 - eps) * plain) + eps * even
    np.testing.assert_allclose(got, expected, rtol=1e-13)


# ---------------------------------------------------------------------------------------------------------------------
# one_hot and predict
# ---------------------------------------------------------------------------------------------------------------------


@SETTINGS
@given(
    x=hnp.arrays(
        st.sampled_from(DTYPES),
        hnp.array_shapes(min_dims=1, max_dims=4, max_side=9),
        elements=st.sampled_from([-INF, -1.0, -0.0, 0.0, 1.0, 2.0, INF, NAN]),
    ),
    data=st.data(),
)
def test_predict_is_argmax(x, data):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    np.testing.assert_array_equal(fastce.predict(x, axis=axis), np.argmax(x, axis=axis))
    finite = np.nan_to_num(x, posinf=9, neginf=-9)
    p, at = fastce.softmax(finite, axis=axis), np.expand_dims(fastce.predict(finite, axis=axis), axis)
    np.testing.assert_array_equal(np.take_along_axis(p, at, axis), p.max(axis=axis, keepdims=True))


@SETTINGS
@given(
    labels=hnp.arrays(
        st.sampled_from(LABEL_DTYPES), hnp.array_shapes(min_dims=0, max_dims=3), elements=st.integers(0, 11)
    ),
    classes=st.integers(12, 40),
    data=st.data(),
)
def test_labels_survive_a_round_trip(labels, classes, data):
    """predict(one_hot(labels)) is labels; each row has a one, and the sum of ones is the count of labels."""
    axis = data.draw(st.integers(-labels.ndim - 1, labels.ndim))
    hot = fastce.one_hot(labels, classes, axis=axis)
    assert hot.shape[axis] == classes
    np.testing.assert_array_equal(fastce.predict(hot, axis=axis), labels)
    np.testing.assert_array_equal(hot.sum(axis=axis), np.ones(labels.shape))
    assert ((hot == 0) | (hot == 1)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Any size, any layout, any options
# ---------------------------------------------------------------------------------------------------------------------

CLASSES = [1, 2, 3, 5, 8, 13, 40, 63, 64, 65, 100, 300, 2050, 4097, 9000]


def _random_call(rng):
    """Sizes around those at which kernels change (64 classes, groups of 128 rows, blocks of 4096 classes)."""
    first = [0.25, 0.2, 0.1, 0.1, 0.1, 0.05, 0.04]
    others = len(FAMILIES) - len(first)
    family = FAMILIES[rng.choice(len(FAMILIES), p=[*first, *[(1 - sum(first)) / others] * others])]
    dtype = rng.choice([F32, F64])
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
            x[rng.random(shape) < 0.5] = -INF
        case 2:
            x += np.where(rng.random(shape) < 1 / classes, rng.choice([10, 50, 300]), 0)
        case 3:
            x += rng.choice([1e3, -1e5, 1e7])
    x = x.astype(dtype)
    labels = np.where(rng.random(lead) < 0.1, -100, rng.integers(0, classes, lead)) if family.has_labels else None
    arrays = list(family.arguments(x, labels, axis=axis, seed=int(rng.integers(99))))
    if family in (PROBABILITIES, SIGMOID) and rng.random() < 0.5:
        arrays[1] = (arrays[1] * (rng.random(shape) < 0.1)).astype(dtype)
    for i, a in enumerate(arrays):
        arrays[i] = _laid_out(a, axis, rng) if a.ndim == ndim else a

    options = {"axis": axis}
    of_elements = lead if family.by_row else shape
    for name, chance, make in (
        ("upstream", 0.5, lambda: rng.normal(size=of_elements).astype(dtype)),
        ("weight", 0.4, lambda: rng.uniform(0.1, 2, classes).astype(dtype)),
        ("pos_weight", 0.4, lambda: rng.uniform(0.1, 2, classes).astype(dtype)),
        ("sample_weight", 0.3, lambda: rng.random(lead).astype(dtype)),
        ("label_smoothing", 0.4, lambda: float(rng.choice([1e-6, 0.1, 0.5, 1]))),
        ("z_loss", 0.3, lambda: float(rng.choice([1e-4, 0.1]))),
        ("temperature", 0.3, lambda: float(rng.choice([0.5, 3]))),
    ):
        if name in family.options and rng.random() < chance:
            options[name] = make()
    if "upstream" in family.options:
        options.setdefault("upstream", rng.choice([1, -2, 0.125]))
    return family, tuple(arrays), options


def _laid_out(a, axis, rng):
    match rng.integers(5):
        case 0:
            return np.asfortranarray(a)
        case 1:
            return np.repeat(a, 2, axis=axis)[tuple(slice(None, None, 2 if i == axis else 1) for i in range(a.ndim))]
        case 2:
            return np.flip(np.flip(a).copy())
    return a


@needs_longdouble
@pytest.mark.parametrize("seed", range(20))
def test_random_calls_are_within_the_contract(seed):
    rng = np.random.default_rng(seed)
    for case in range(20):
        family, arrays, options = _random_call(rng)
        x = arrays[-1] if family in PRODUCTS else arrays[0]
        try:
            check(family, arrays, more=OPTION_ULPS if family.is_reduced else 0, **options)
        except AssertionError as error:
            said = {key: value if np.ndim(value) == 0 else "array" for key, value in options.items()}
            error.add_note(f"case {case}: {family.name}, {x.dtype} {x.shape}, strides {x.strides}, {said}")
            raise
