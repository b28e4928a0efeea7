"""Every combination of options, on every layout, against the exact values and against finite differences of the loss
itself; targets and weights of every kind; what options mean for one another. The numbers here are well-conditioned: how
accurate the options are in hard cases is in test_numerics.py, what they mean is by hand in test_by_hand.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from functions import (
    F64,
    FAMILIES,
    INDEX,
    LOSSES,
    ONE_TERM,
    PROBABILITIES,
    PRODUCTS,
    SIGMOID,
    TWO_TERM,
    VALUES,
    assert_same_bits,
    check,
    combinations,
    dtypes,
    over,
)
from oracle import CONTRACT_ULPS, OPTION_ULPS, needs_longdouble
from rows import slope

import fastce

ULPS = CONTRACT_ULPS + OPTION_ULPS


def _name_of(value):
    return "+".join(value) or "plain" if isinstance(value, dict) else value.name


COMBINATIONS = [(family, options) for family in LOSSES for options in combinations(family)]
each_combination = pytest.mark.parametrize("family, options", COMBINATIONS, ids=_name_of)
REDUCTIONS = [("mean", None), ("mean", 7.5), ("sum", None), ("none", None)]
# What `ignore_index` is set to: outside the classes, one of them, none.
IGNORED = [-100, 2, None]

# name: the shape of logits of so many classes along an axis, and their memory order
LAYOUTS = {
    "rows": (lambda c: (9, c), -1, np.ascontiguousarray),
    "fortran": (lambda c: (9, c), -1, np.asfortranarray),
    "axis0": (lambda c: (c, 9), 0, np.ascontiguousarray),
    "axis0-fortran": (lambda c: (c, 9), 0, np.asfortranarray),
    "NCHW": (lambda c: (2, c, 3, 4), 1, np.ascontiguousarray),
    "middle": (lambda c: (2, 3, c, 2), -2, np.ascontiguousarray),
    "strided": (lambda c: (5, c, 3), 1, lambda a: np.repeat(np.repeat(a, 2, axis=1), 2, axis=0)[::-2, ::2]),
}


def _case(family, shape, axis, options, dtype, seed=1):
    """Arrays whose labels are all classes, and the options with arrays in place of "random"."""
    rng = np.random.default_rng(seed)
    classes, lead = shape[axis], tuple(np.delete(shape, axis))
    x = rng.normal(0, 2, shape).astype(dtype)
    labels = rng.integers(0, classes, lead) if family.has_labels else None
    arrays = family.arguments(x, labels, axis=axis, seed=seed)
    vectors = {
        "weight": rng.random(classes).astype(dtype),
        "pos_weight": rng.random(classes).astype(dtype) * 3,
        "sample_weight": rng.random(lead).astype(dtype),
    }
    return arrays, {key: vectors.get(key, value) for key, value in options.items()}


def _upstream(family, reduction, shape, axis):
    """Each gradient of what is returned its own."""
    if reduction != "none":
        return -1.5
    shape = tuple(np.delete(shape, axis)) if family.by_row else shape
    return np.linspace(-1, 2, int(np.prod(shape))).reshape(shape)


# ---------------------------------------------------------------------------------------------------------------------
# Every combination
# ---------------------------------------------------------------------------------------------------------------------


def test_no_option_is_left_out():
    """Those without values in the table are given to every combination."""
    given = {"reduction", "normalizer", "axis", "upstream", "ignore_index"}
    assert set().union(*(family.options for family in LOSSES)) == given | set(VALUES)


@needs_longdouble
@dtypes
@each_combination
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_combination(layout, family, options, dtype):
    shape_of, axis, arrange = LAYOUTS[layout]
    for classes, (reduction, normalizer) in itertools.product((6, 70), REDUCTIONS):
        shape = shape_of(classes)
        arrays, given = _case(family, shape, axis, options, dtype)
        arrays = tuple(a if a.dtype.kind == "i" else arrange(a) for a in arrays)
        shape = arrays[0].shape
        given |= {"reduction": reduction, "normalizer": normalizer, "axis": axis}
        given["upstream"] = _upstream(family, reduction, shape, axis)
        if family is not INDEX:
            check(family, arrays, more=OPTION_ULPS, **given)
        else:
            for ignored in IGNORED:
                labels = arrays[1].copy()
                if ignored == -100:
                    labels.flat[::4] = ignored
                check(family, (arrays[0], labels), more=OPTION_ULPS, **given, ignore_index=ignored)
        if reduction == "none" and classes == 70:
            assert_same_bits(family, arrays, **given)


SLOPE_ROOM = 1e-12  # for each unit of the loss, and for ten more: what `slope` is off by


# Logits whose elements are computed in pieces of several kinds: short rows, rows as long as a piece and longer, rows
# that are contiguous in all of the array or in blocks, and rows with gaps.
PIECES = {
    "short rows": ((700, 3), -1, "rows"),
    "rows with a rest": ((9, 431), -1, "rows"),
    "long rows": ((3, 1025), -1, "rows"),
    "longer rows": ((2, 4099), -1, "rows"),
    "one class": ((1500, 1), -1, "rows"),
    "contiguous rows": ((1100, 5), -1, "fortran"),
    "few contiguous rows": ((70, 30), -1, "fortran"),
    "many contiguous rows": ((33000, 2), -1, "fortran"),
    "blocks of rows": ((3, 4, 9, 11), 1, "rows"),
    "rows with gaps": ((150, 7), -1, "strided"),
}


@dtypes
@pytest.mark.parametrize("target_dtype", [None, bool, np.int8, np.uint16, np.int64, F64])
@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_the_sigmoid_form(name, target_dtype, dtype):
    shape, axis, order = PIECES[name]
    arrange = {
        "rows": np.ascontiguousarray,
        "fortran": np.asfortranarray,
        "strided": lambda a: np.repeat(a, 2, axis=-1)[:, ::2],
    }[order]
    rng = np.random.default_rng(7)
    x = arrange(rng.uniform(-7, 7, shape).astype(dtype))
    c = rng.random(shape) if target_dtype in (None, F64) else rng.integers(2, size=shape)
    c = arrange(c.astype(dtype if target_dtype is None else target_dtype))
    weights = {key: rng.random(shape[axis]) + 0.5 for key in ("weight", "pos_weight")}
    by_row = {"sample_weight": rng.random(np.delete(shape, axis)) + 0.5}
    for options in ({}, weights, by_row, weights | by_row):
        check(SIGMOID, (x, c), axis=axis, more=OPTION_ULPS, **options)
        check(SIGMOID, (x, c), axis=axis, more=OPTION_ULPS, reduction="mean", **options)
        check(SIGMOID, (x, c), axis=axis, more=OPTION_ULPS, upstream=arrange(rng.random(shape)), **options)
        assert_same_bits(SIGMOID, (x, c), axis=axis, reduction="sum", **options)
    _, want = fastce.binary_cross_entropy_with_grad(x, c, axis=axis, **weights, **by_row)
    out = x.copy(order="K")
    _, grad = fastce.binary_cross_entropy_with_grad(out, c, axis=axis, **weights, **by_row, out=out)
    assert grad is out and np.array_equal(grad, want)


@dtypes
def test_large_losses_of_the_sigmoid_form_do_not_overflow_in_their_sum(dtype):
    z = np.full(257, 0.7 * np.finfo(dtype).max if dtype is np.float32 else 1e300, dtype)
    loss = fastce.binary_cross_entropy(z, np.zeros_like(z))
    assert loss == pytest.approx(z[0], rel=1e-6)


def _assert_slope(family, arrays, upstream, options):
    """What is returned as the gradient is the gradient of what is returned as the loss."""
    forward, backward = family.functions[0], family.functions[-1]

    def objective(x):
        return upstream * forward(x, arrays[1], **options)["loss"]

    grad = backward(*arrays, upstream=upstream, **options)["grad"]
    room = SLOPE_ROOM * (10 + np.abs(objective(arrays[0])).sum())
    np.testing.assert_allclose(grad, slope(objective, arrays[0]), rtol=0, atol=room)


@each_combination
@pytest.mark.parametrize("axis", [0, 1])
def test_every_combination_by_finite_differences(axis, family, options):
    for (reduction, normalizer), ignored in itertools.product(REDUCTIONS, IGNORED if family is INDEX else [None]):
        arrays, given = _case(family, (4, 5), axis, options, F64, seed=2)
        given |= {"reduction": reduction, "normalizer": normalizer, "axis": axis}
        if family is INDEX:
            given["ignore_index"] = ignored
            arrays[1][1] = -100 if ignored == -100 else arrays[1][1]
        _assert_slope(family, arrays, _upstream(family, reduction, (4, 5), axis), given)


@over(LOSSES)
@pytest.mark.parametrize("classes", [2, 3, 40, 70])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_finite_differences_over_more_classes(reduction, classes, family):
    for options in ({}, {name: values[1] for name, values in VALUES.items() if name in family.options}):
        arrays, given = _case(family, (3, classes), -1, options, F64, seed=5)
        given["reduction"] = reduction
        if family is INDEX:
            arrays[1][2] = -100
        _assert_slope(family, arrays, _upstream(family, reduction, (3, classes), -1), given)


@over(PRODUCTS)
@pytest.mark.parametrize("classes", [3, 70])
def test_products_are_derivatives(classes, family):
    """Of sum(upstream * softmax(x))."""
    x, upstream = np.random.default_rng(5).normal(size=(2, 3, classes))
    forward = getattr(fastce, family.name.removesuffix("_grad"))
    for options in ({}, {"temperature": 0.7}, {"temperature": 3.0}):
        grad = getattr(fastce, family.name)(upstream, forward(x, **options), **options)
        want = slope(lambda x, options=options: upstream * forward(x, **options), x)
        np.testing.assert_allclose(grad, want, rtol=0, atol=10 * SLOPE_ROOM)


# ---------------------------------------------------------------------------------------------------------------------
# Sizes and axes
# ---------------------------------------------------------------------------------------------------------------------


@needs_longdouble
@dtypes
@over(FAMILIES)
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
        ((4, 100, 30), 1),
        ((2, 3, 2, 3, 1, 4), 3),
        ((1, 5000, 3), 1),
        ((2, 10, 131), -2),
        ((11,), 0),
    ],
)
def test_any_axis(shape, axis, family, dtype):
    options = {"weight": "random", "sample_weight": "random", "label_smoothing": 0.05}
    arrays, given = _case(family, shape, axis, {k: v for k, v in options.items() if k in family.options}, dtype)
    for reduction in ({"reduction": "mean"}, {"reduction": "none"}) if family.is_reduced else ({},):
        check(family, arrays, more=OPTION_ULPS if family.is_reduced else 0, axis=axis, **given, **reduction)


@needs_longdouble
@dtypes
@over(LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(1, 3), (130, 17), (13, 10, 40), (3000, 5)])
def test_reductions_of_many_rows(shape, reduction, family, dtype):
    for options in ({}, {"weight": "random", "sample_weight": "random"}):
        arrays, given = _case(family, shape, -1, options, dtype, seed=6)
        check(family, arrays, more=OPTION_ULPS, **given, reduction=reduction, upstream=0.7)


@needs_longdouble
@dtypes
@over(ONE_TERM)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"weight": "random"}], ids=lambda o: "".join(o) or "plain"
)
@pytest.mark.parametrize("classes", [5, 64, 65, 66, 100, 129, 300])
def test_ignored_rows_spoil_no_others(classes, options, axis, family, dtype):
    """Over several groups of rows that are worked on together, whose last is smaller and may be cut otherwise."""
    for rows in (129, 205, 300):
        shape = (classes, rows) if axis == 0 else (rows, classes)
        arrays, given = _case(family, shape, axis, options, dtype, seed=rows)
        if family is INDEX:
            arrays[1][np.random.default_rng(rows).random(rows) < 0.3] = -100
        check(family, arrays, more=OPTION_ULPS, axis=axis, **given)


@needs_longdouble
@dtypes
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("classes", [5, 80, 5000, 40_000])
def test_weighted_smoothing_where_the_maximum_is_not_the_label(classes, axis, dtype):
    """Nearly all of the probability and of the smoothed targets belong to one class: p - q cancels there."""
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(4, classes)).astype(dtype)
    x[:, classes // 2] = 30
    weight = np.full(classes, 1e-6)
    weight[classes // 2] = 1
    if axis == 0:
        x = np.ascontiguousarray(x.T)
    check(INDEX, (x, np.arange(4)), more=OPTION_ULPS, axis=axis, weight=weight, label_smoothing=0.9)


# ---------------------------------------------------------------------------------------------------------------------
# Targets and weights of every kind
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target_dtype", "? i1 i2 i4 i8 u1 u2 u4 u8 f4 f8 >i4 >f8".split())
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("classes", [5, 80])
@dtypes
def test_one_hot_of_every_dtype_equals_the_index(dtype, classes, axis, target_dtype):
    (logits, labels), options = _case(INDEX, (7, classes), -1, {"weight": "random", "z_loss": 0.1}, dtype)
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
@dtypes
@over([PROBABILITIES, SIGMOID, TWO_TERM])
@pytest.mark.parametrize("target_dtype", ["f4", "f8", "f2", "i2", "u8", "?"])
@pytest.mark.parametrize("classes", [5, 80, 5000])
def test_rows_of_targets_of_other_dtypes(classes, target_dtype, family, dtype):
    """Rounded once to the logits' dtype, wherever that is needed; numbers beyond 1 are taken as they are."""
    rng = np.random.default_rng(3)
    targets = rng.random((4, classes)) * (1 if target_dtype[0] == "f" or family is not PROBABILITIES else 5)
    x = rng.normal(size=(4, classes)).astype(dtype)
    check(family, (x, targets.astype(target_dtype)), more=OPTION_ULPS)


def test_targets_are_told_apart_by_shape():
    """(3, 3) logits: three labels are indices, a 3 x 3 array of integers is one-hot."""
    logits = np.random.default_rng(4).normal(size=(3, 3))
    labels = np.array([2, 0, 1])
    one_hot = np.eye(3, dtype=np.int64)[labels]
    assert fastce.cross_entropy(logits, labels) == pytest.approx(fastce.cross_entropy(logits, one_hot), rel=1e-15)


@needs_longdouble
@dtypes
@over(LOSSES)
def test_weights_of_other_dtypes_are_values(family, dtype):
    """float64, integer and bool weights, lists and scalars that broadcast: what counts is their value."""
    arrays, _ = _case(family, (6, 4), -1, {}, dtype)
    options = {"label_smoothing": 0.1} if family in ONE_TERM else {}
    for weight in ([1, 2, 0, 4], [0.1, 1 / 3, 2.5, 1], [True, True, False, True]):
        for sample_weight in (None, [1, 2, 3, 0, 5, 6], [0.1, 0.7, 1 / 3, 1, 2, 3]):
            for reduction in ("mean", "none"):
                given = {"weight": weight, "sample_weight": sample_weight, "reduction": reduction}
                check(family, arrays, more=OPTION_ULPS, **given, **options)


def test_nothing_of_an_ignored_row_is_read_or_counted():
    """Its sample weight and upstream do not matter either, NaN included."""
    (logits, labels), options = _case(INDEX, (8, 6), -1, {"weight": "random", "label_smoothing": 0.1}, F64)
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


# ---------------------------------------------------------------------------------------------------------------------
# What options mean for one another
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
@over(LOSSES)
def test_options_that_are_off_change_nothing(family, dtype):
    """Written out or left out: the same to the bit."""
    arrays, _ = _case(family, (6, 9), -1, {}, dtype)
    off = {"weight": None, "pos_weight": None, "sample_weight": None, "label_smoothing": 0.0, "z_loss": 0.0}
    off |= {"temperature": 1.0, "softcap": None, "normalizer": None, "axis": 1, "upstream": 1.0, "out": None}
    off |= {"reduction": "mean"}
    for function in family.functions:
        got, want = function(*arrays, **function.taken(off)), function(*arrays, reduction="mean")
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])


@dtypes
def test_smoothing_over_the_other_classes(dtype):
    """The eps/(C-1) convention is eps*C/(C-1) here: the label keeps 1 - eps, each other class gets eps/(C-1)."""
    (logits, labels), _ = _case(INDEX, (6, 9), -1, {}, dtype)
    c = np.where(np.eye(9)[labels] == 1, 0.7, 0.3 / 8)
    got = fastce.cross_entropy_with_grad(logits, labels, label_smoothing=0.3 * 9 / 8)
    want = fastce.cross_entropy_with_grad(logits, c)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=20 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps)


@over(LOSSES)
def test_normalizer_accumulates_batches(family):
    """The gradient of a batch in two parts, each divided by the whole: the same as at once."""
    (logits, targets), options = _case(family, (10, 6), -1, {"weight": "random"}, F64)
    whole = {PROBABILITIES: 10, TWO_TERM: 10, SIGMOID: 60}.get(family) or options["weight"][targets].sum()
    function = family.functions[1]
    at_once = function(logits, targets, reduction="mean", **options)
    parts = [
        function(logits[part], targets[part], normalizer=whole, reduction="mean", **options)
        for part in (slice(0, 3), slice(3, 10))
    ]
    assert sum(part["loss"] for part in parts) == pytest.approx(at_once["loss"], rel=1e-14)
    np.testing.assert_allclose(np.concatenate([part["grad"] for part in parts]), at_once["grad"], rtol=1e-13)


@over([INDEX, PROBABILITIES, TWO_TERM])
def test_whole_sample_weights_repeat_rows(family):
    (logits, targets), _ = _case(family, (5, 6), -1, {}, F64)
    times = np.array([1, 3, 0, 2, 1])
    function = family.functions[1]
    got = function(logits, targets, sample_weight=times, reduction="mean")
    repeated = np.repeat(np.arange(5), times)
    want = function(logits[repeated], targets[repeated], reduction="mean")
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-14)
    folded = np.zeros_like(got["grad"])
    np.add.at(folded, repeated, want["grad"])
    np.testing.assert_allclose(got["grad"], folded, rtol=1e-12, atol=1e-16)


# ---------------------------------------------------------------------------------------------------------------------
# The layer form
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("family, options", [pair for pair in COMBINATIONS if pair[0] in ONE_TERM], ids=_name_of)
def test_layer_equals_the_functions(family, options, dtype):
    for (reduction, normalizer), axis in itertools.product(REDUCTIONS, (-1, 0)):
        (logits, targets), given = _case(family, (6, 8), axis, options, dtype)
        given |= {"reduction": reduction, "normalizer": normalizer, "axis": axis}
        if family is INDEX:
            targets[2] = 3
            given |= {"ignore_index": 3}
        layer = fastce.CrossEntropyLoss(**given)
        np.testing.assert_array_equal(layer(logits, targets), fastce.cross_entropy(logits, targets, **given))
        expected = fastce.cross_entropy_grad(logits, targets, upstream=1.5, **given)
        tolerance = 10 * np.finfo(dtype).eps
        np.testing.assert_allclose(layer.backward(1.5), expected, rtol=tolerance, atol=tolerance)
