"""Every combination of options, for both kinds of targets, on every layout, against the exact values and against finite
differences of the loss itself. The numbers here are well-conditioned; how accurate the options are in hard cases is in
test_numerics.py, what they mean is by hand in test_values.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fastce

from .oracle import CONTRACT_ULPS, OPTION_ULPS, assert_gradient, assert_losses, exact, needs_longdouble

F32, F64 = np.float32, np.float64
ULPS = CONTRACT_ULPS + OPTION_ULPS
NAMES = ("weight", "sample_weight", "label_smoothing", "z_loss")
COMBINATIONS = [
    {name: value for name, value in zip(NAMES, chosen, strict=True) if value}
    for chosen in itertools.product((None, "random"), (None, "random"), (0.0, 0.1, 1.0), (0.0, 1e-2))
]
REDUCTIONS = [("mean", None), ("mean", 7.5), ("sum", None), ("none", None)]
# What `ignore_index` is set to: outside the classes, one of them, none.
IGNORED = [-100, 2, None]

# name: logits of 6 (or 70) classes along an axis, whose memory order each layout differs in
LAYOUTS = {
    "rows": (lambda c: (9, c), -1, np.ascontiguousarray),
    "fortran": (lambda c: (9, c), -1, np.asfortranarray),
    "axis0": (lambda c: (c, 9), 0, np.ascontiguousarray),
    "axis0-fortran": (lambda c: (c, 9), 0, np.asfortranarray),
    "NCHW": (lambda c: (2, c, 3, 4), 1, np.ascontiguousarray),
    "middle": (lambda c: (2, 3, c, 2), -2, np.ascontiguousarray),
    "strided": (lambda c: (5, c, 3), 1, lambda a: np.repeat(np.repeat(a, 2, axis=1), 2, axis=0)[::-2, ::2]),
}

dtypes = pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
kinds = pytest.mark.parametrize("kind", ["index", "probabilities"])
combinations = pytest.mark.parametrize("options", COMBINATIONS, ids=lambda options: "+".join(options) or "plain")


def _case(kind, shape, axis, options, dtype, seed=1):
    """Logits, targets, and the options with arrays in place of "random"."""
    rng = np.random.default_rng(seed)
    classes, lead = shape[axis], tuple(np.delete(shape, axis))
    logits = rng.normal(0, 2, shape).astype(dtype)
    targets = rng.integers(0, classes, lead) if kind == "index" else rng.random(shape).astype(dtype)
    arrays = {"weight": rng.random(classes).astype(dtype), "sample_weight": rng.random(lead).astype(dtype)}
    return logits, targets, {key: arrays.get(key, value) for key, value in options.items()}


def _check_reduced(loss, want, dtype, rows):
    """mean and sum: each row's bound, the float64 sum over the rows, and the roundings of the finish."""
    allowed = ((ULPS + want.gap) * want.row_scale).sum() / want.row_scale.sum() * np.finfo(dtype).eps
    allowed += rows * np.finfo(F64).eps + 2 * np.finfo(dtype).eps
    assert type(loss) is dtype
    assert abs(loss - want.loss) <= allowed * abs(want.row_scale.sum() / want.rows.sum() * want.loss)


def _check(logits, targets, options, *, upstream=1.0):
    """Every function of the API on one call's arguments against the exact values; threads change nothing."""
    dtype, axis = logits.dtype.type, options.get("axis", -1)
    want = exact(logits, targets, upstream=upstream, **options)
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, upstream=upstream, num_threads=1, **options)
    if options["reduction"] == "none":
        assert_losses(loss, want, ulps=ULPS)
    else:
        _check_reduced(loss, want, dtype, want.rows.size)
    assert grad.dtype == dtype
    assert_gradient(grad, want, ulps=ULPS, axis=axis)

    forward, stats = fastce.cross_entropy(logits, targets, return_stats=True, num_threads=2, **options)
    np.testing.assert_array_equal(forward, loss)
    backward = fastce.cross_entropy_grad(logits, targets, upstream=upstream, num_threads=2, **options)
    np.testing.assert_array_equal(backward, grad)
    out = np.full(logits.shape, np.nan, dtype)
    with_stats = fastce.cross_entropy_grad(logits, targets, upstream=upstream, stats=stats, out=out, **options)
    assert with_stats is out
    assert_gradient(with_stats, want, ulps=ULPS + 1, axis=axis)  # stats are rounded once
    return grad


# ---------------------------------------------------------------------------------------------------------------------
# Every combination
# ---------------------------------------------------------------------------------------------------------------------


@needs_longdouble
@dtypes
@kinds
@pytest.mark.parametrize("layout", LAYOUTS)
@combinations
def test_every_combination(options, layout, kind, dtype):
    shape_of, axis, arrange = LAYOUTS[layout]
    for classes, (reduction, normalizer) in itertools.product((6, 70), REDUCTIONS):
        shape = shape_of(classes)
        logits, targets, given = _case(kind, shape, axis, options, dtype)
        logits = arrange(logits)
        if kind == "probabilities":
            targets = arrange(targets)
        given |= {"reduction": reduction, "normalizer": normalizer, "axis": axis}
        rows = tuple(np.delete(logits.shape, axis))
        upstream = np.linspace(-1, 2, int(np.prod(rows)), dtype=dtype).reshape(rows) if reduction == "none" else -1.5
        if kind == "probabilities":
            _check(logits, targets, given, upstream=upstream)
            continue
        for ignored in IGNORED:
            labels = targets.copy()
            if ignored == -100:
                labels.flat[::4] = ignored
            _check(logits, labels, given | {"ignore_index": ignored}, upstream=upstream)


@kinds
@pytest.mark.parametrize("axis", [0, 1])
@combinations
def test_every_combination_by_finite_differences(options, axis, kind):
    """What is returned as the gradient is the gradient of what is returned as the loss."""
    h = 1e-3  # 4th-order central differences: the method's error and rounding are each below 1e-12 times the loss
    for (reduction, normalizer), ignored in itertools.product(REDUCTIONS, IGNORED):
        logits, targets, given = _case(kind, (4, 5), axis, options, F64, seed=2)
        if kind == "index" and ignored == -100:
            targets[1] = ignored
        given |= {"reduction": reduction, "normalizer": normalizer, "axis": axis, "ignore_index": ignored}
        upstream = np.arange(1.0, 6.0)[: 5 if axis == 0 else 4] if reduction == "none" else 0.7
        grad = fastce.cross_entropy_grad(logits, targets, upstream=upstream, **given)
        for i, j in np.ndindex(logits.shape):
            total = 0.0
            for steps, factor in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
                moved = logits.copy()
                moved[i, j] += steps * h
                total += factor * np.sum(upstream * fastce.cross_entropy(moved, targets, **given))
            assert total / (12 * h) == pytest.approx(grad[i, j], abs=3e-11)


# ---------------------------------------------------------------------------------------------------------------------
# Targets
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target_dtype", "? i1 i2 i4 i8 u1 u2 u4 u8 f4 f8 >i4 >f8".split())
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("classes", [5, 80])
@dtypes
def test_one_hot_of_every_dtype_equals_the_index(dtype, classes, axis, target_dtype):
    logits, labels, options = _case("index", (7, classes), -1, {"weight": "random", "z_loss": 0.1}, dtype)
    one_hot = np.eye(classes)[labels].astype(target_dtype)
    # the mean of probability targets divides by the rows, that of indices by their weights
    options |= {"normalizer": 3.0}
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, label_smoothing=0.1, **options)
    if axis == 0:
        logits, one_hot, grad = logits.T, one_hot.T, grad.T
    got, got_grad = fastce.cross_entropy_with_grad(logits, one_hot, label_smoothing=0.1, axis=axis, **options)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(got, loss, rtol=2 * ULPS * eps)
    np.testing.assert_allclose(got_grad, grad, rtol=0, atol=2 * ULPS * eps)


@needs_longdouble
@pytest.mark.parametrize("target_dtype", [np.float32, np.float64, np.float16, np.int16, np.uint64, np.bool_])
@pytest.mark.parametrize("classes", [5, 80, 5000])
@dtypes
def test_probabilities_of_other_dtypes(dtype, classes, target_dtype):
    """Rounded once to the logits' dtype, wherever that is needed; numbers beyond 1 are taken as they are."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(4, classes)).astype(dtype)
    targets = (rng.random((4, classes)) * (1 if np.dtype(target_dtype).kind == "f" else 5)).astype(target_dtype)
    want = exact(logits, targets, reduction="none")
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, reduction="none")
    assert_losses(loss, want, ulps=ULPS)
    assert_gradient(grad, want, ulps=ULPS)


def test_targets_are_told_apart_by_shape():
    """(3, 3) logits: three labels are indices, a 3 x 3 array of integers is one-hot."""
    logits = np.random.default_rng(4).normal(size=(3, 3))
    labels = np.array([2, 0, 1])
    one_hot = np.eye(3, dtype=np.int64)[labels]
    assert fastce.cross_entropy(logits, labels) == pytest.approx(fastce.cross_entropy(logits, one_hot), rel=1e-15)


@needs_longdouble
@dtypes
def test_weights_of_other_dtypes_are_values(dtype):
    """float64, integer and bool weights, lists and scalars that broadcast: what counts is their value."""
    logits, labels, _ = _case("index", (6, 4), -1, {}, dtype)
    for weight in ([1, 2, 0, 4], [0.1, 1 / 3, 2.5, 1], [True, True, False, True]):
        for sample_weight in (None, [1, 2, 3, 0, 5, 6], [0.1, 0.7, 1 / 3, 1, 2, 3]):
            for reduction in ("mean", "none"):
                options = {"weight": weight, "sample_weight": sample_weight, "reduction": reduction}
                _check(logits, labels, options | {"label_smoothing": 0.1})


@needs_longdouble
def test_nothing_of_an_ignored_row_is_read_or_counted():
    """Its sample weight and upstream do not matter either, NaN included."""
    logits, labels, options = _case("index", (8, 6), -1, {"weight": "random", "label_smoothing": 0.1}, F64)
    labels[[1, 5]] = -100
    logits[[1, 5]] = np.nan
    upstream = np.linspace(1, 2, 8)
    upstream[1] = np.nan
    kept = labels >= 0
    options |= {"reduction": "none"}
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, upstream=upstream, **options)
    alone = fastce.cross_entropy_with_grad(logits[kept], labels[kept], upstream=upstream[kept], **options)
    assert (loss[~kept] == 0).all() and (grad[~kept] == 0).all()
    np.testing.assert_allclose(loss[kept], alone[0], rtol=1e-14)
    np.testing.assert_allclose(grad[kept], alone[1], rtol=1e-14, atol=1e-17)


@needs_longdouble
@dtypes
@kinds
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"weight": "random"}], ids=lambda o: "".join(o) or "plain"
)
@pytest.mark.parametrize("classes", [5, 64, 65, 66, 100, 129, 300])
def test_ignored_rows_spoil_no_others(classes, options, axis, kind, dtype):
    """Over several groups of positions that are worked on together, whose last is smaller and may be cut otherwise."""
    for rows in (129, 205, 300):
        shape = (classes, rows) if axis == 0 else (rows, classes)
        logits, targets, given = _case(kind, shape, axis, options, dtype, seed=rows)
        if kind == "index":
            targets[np.random.default_rng(rows).random(rows) < 0.3] = -100
        given |= {"axis": axis, "reduction": "none"}
        want = exact(logits, targets, **given)
        loss, grad = fastce.cross_entropy_with_grad(logits, targets, **given)
        assert_losses(loss, want, ulps=ULPS)
        assert_gradient(grad, want, ulps=ULPS, axis=axis)
        assert_losses(fastce.cross_entropy(logits, targets, **given), want, ulps=ULPS)


# ---------------------------------------------------------------------------------------------------------------------
# Axes and memory
# ---------------------------------------------------------------------------------------------------------------------


@needs_longdouble
@dtypes
@kinds
@pytest.mark.parametrize(
    "shape, axis",
    [
        ((2, 21, 9, 8), 1),
        ((2, 21, 9, 8), -3),
        ((3, 4, 5), 0),
        ((3, 4, 5), 1),
        ((3, 4, 5), 2),
        ((300, 7), 0),
        ((7, 300), 0),
        ((2, 3, 2, 3, 1, 4), 3),
        ((1, 5000, 3), 1),
        ((2, 10, 131), -2),
        ((11,), 0),
    ],
)
def test_any_axis(shape, axis, kind, dtype):
    options = {"weight": "random", "sample_weight": "random", "label_smoothing": 0.05}
    logits, targets, options = _case(kind, shape, axis, options, dtype)
    for reduction in ("mean", "none"):
        _check(logits, targets, options | {"axis": axis, "reduction": reduction})


@dtypes
@kinds
@pytest.mark.parametrize("classes", [5, 100])
def test_axis_equals_moving_the_classes(classes, kind, dtype):
    """The same numbers from the same rows, whatever kernel the layout is given to."""
    logits, targets, _ = _case(kind, (4, classes, 30), 1, {}, dtype)
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, axis=1, reduction="none")
    moved = np.ascontiguousarray(np.moveaxis(logits, 1, -1))
    moved_targets = np.ascontiguousarray(np.moveaxis(targets, 1, -1)) if kind == "probabilities" else targets
    expected, expected_grad = fastce.cross_entropy_with_grad(moved, moved_targets, reduction="none")
    tolerance = {"rtol": 2 * CONTRACT_ULPS * np.finfo(dtype).eps, "atol": 2 * CONTRACT_ULPS * np.finfo(dtype).eps}
    np.testing.assert_allclose(loss, expected, **tolerance)
    np.testing.assert_allclose(np.moveaxis(grad, 1, -1), expected_grad, **tolerance)


def _strides_order(a):
    return np.argsort([-abs(s) for s, n in zip(a.strides, a.shape, strict=True) if n > 1], kind="stable").tolist()


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_gradient_keeps_the_memory_order_of_the_logits(order, axis):
    logits = np.random.default_rng(5).normal(size=(4, 5, 6)).transpose(order)
    assert logits.size == 120
    labels = np.zeros(tuple(np.delete(logits.shape, axis)), int)
    for grad in (
        fastce.cross_entropy_with_grad(logits, labels, axis=axis)[1],
        fastce.cross_entropy_grad(logits, labels, axis=axis),
    ):
        assert _strides_order(grad) == _strides_order(logits)
        assert grad.transpose(np.argsort(order)).flags.c_contiguous


@needs_longdouble
@kinds
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("order", ["C", "F"])
def test_out_of_any_memory_order(order, axis, kind):
    """Given as any view of the right shape, filled, and nothing beside it is."""
    logits, targets, _ = _case(kind, (20, 21), axis, {}, F32)
    expected = fastce.cross_entropy_grad(logits, targets, axis=axis)
    frame = np.full((44, 66), 7, F32, order=order)
    out = frame[2:42:2, 3:66:3]
    assert fastce.cross_entropy_grad(logits, targets, axis=axis, out=out) is out
    np.testing.assert_array_equal(out, expected)
    out[:] = 7
    assert (frame == 7).all()


# ---------------------------------------------------------------------------------------------------------------------
# The layer form
# ---------------------------------------------------------------------------------------------------------------------


@kinds
@dtypes
@combinations
def test_layer_equals_the_functions(options, dtype, kind):
    for (reduction, normalizer), axis in itertools.product(REDUCTIONS, (-1, 0)):
        logits, targets, given = _case(kind, (6, 8), axis, options, dtype)
        given |= {"reduction": reduction, "normalizer": normalizer, "axis": axis}
        if kind == "index":
            targets[2] = 3
            given |= {"ignore_index": 3}
        layer = fastce.CrossEntropyLoss(**given)
        loss = layer(logits, targets)
        grad = layer.backward(1.5)
        expected, stats = fastce.cross_entropy(logits, targets, return_stats=True, **given)
        np.testing.assert_array_equal(loss, expected)
        expected_grad = fastce.cross_entropy_grad(logits, targets, upstream=1.5, **given)
        tolerance = 10 * np.finfo(dtype).eps
        np.testing.assert_allclose(grad, expected_grad, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# What options mean for one another
# ---------------------------------------------------------------------------------------------------------------------


@kinds
@dtypes
def test_options_that_are_off_change_nothing(dtype, kind):
    """Written out or left out: the same to the bit."""
    logits, targets, _ = _case(kind, (6, 9), -1, {}, dtype)
    expected = fastce.cross_entropy_with_grad(logits, targets)
    off = {"weight": None, "sample_weight": None, "label_smoothing": 0.0, "z_loss": 0.0, "normalizer": None, "axis": 1}
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, upstream=1.0, out=None, **off)
    assert loss == expected[0]
    np.testing.assert_array_equal(grad, expected[1])


@dtypes
def test_smoothing_over_the_other_classes(dtype):
    """The eps/(C-1) convention is eps*C/(C-1) here: the label keeps 1 - eps, each other class gets eps/(C-1)."""
    logits, labels, _ = _case("index", (6, 9), -1, {}, dtype)
    c = np.where(np.eye(9)[labels] == 1, 0.7, 0.3 / 8)
    got = fastce.cross_entropy_with_grad(logits, labels, label_smoothing=0.3 * 9 / 8)
    want = fastce.cross_entropy_with_grad(logits, c)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=20 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)


@kinds
def test_normalizer_accumulates_batches(kind):
    """The gradient of a batch in two parts, each divided by the whole: the same as at once."""
    logits, targets, options = _case(kind, (10, 6), -1, {"weight": "random"}, F64)
    whole = 10.0 if kind == "probabilities" else options["weight"][targets].sum()
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, **options)
    parts = [
        fastce.cross_entropy_with_grad(logits[part], targets[part], normalizer=whole, **options)
        for part in (slice(0, 3), slice(3, 10))
    ]
    assert sum(part[0] for part in parts) == pytest.approx(loss, rel=1e-14)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), grad, rtol=1e-13)


@kinds
def test_whole_sample_weights_repeat_rows(kind):
    logits, targets, _ = _case(kind, (5, 6), -1, {}, F64)
    times = np.array([1, 3, 0, 2, 1])
    loss, grad = fastce.cross_entropy_with_grad(logits, targets, sample_weight=times)
    repeated = np.repeat(np.arange(5), times)
    expected, expected_grad = fastce.cross_entropy_with_grad(logits[repeated], targets[repeated])
    assert loss == pytest.approx(expected, rel=1e-14)
    folded = np.zeros_like(grad)
    np.add.at(folded, repeated, expected_grad)
    np.testing.assert_allclose(grad, folded, rtol=1e-12, atol=1e-16)
