"""The accuracy contract, of every function: relative errors of (4 + gap) eps in the loss and at the label, and of
(4 + abs(x_j - row_max)) eps in every other element of the gradient. It holds on confident rows, at large offsets, over
a million classes, down into the subnormal numbers, with every option, for classes that lie together in memory and for
rows that do, and under every instruction set."""

from __future__ import annotations

import math

import numpy as np
import pytest
from functions import (
    DTYPES,
    F32,
    FAMILIES,
    INDEX,
    LOSSES,
    MAPS,
    ONE_TERM,
    PROBABILITIES,
    SIGMOID,
    TWO_TERM,
    check,
    dtypes,
    numbers,
    one_hot_rows,
    over,
    soft_targets,
)
from isa import AVAILABLE, computed_with
from oracle import CONTRACT_ULPS, LD, OPTION_ULPS, Number, assert_within, exact, needs_longdouble
from rows import ARRANGEMENTS, GAPS, SUBNORMAL_GAPS, check_arranged, confident, on_grid, options_of

import fastce

pytestmark = needs_longdouble

CLASSES = [2, 3, 4, 9, 17, 64, 65, 130]
# Around the widths of the vectors (4 to 16), of the kernels for few classes (64) and of blocks of classes (4096).
MANY_CLASSES = [2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 1000, 4097]
OFFSETS = [0.0, 1e2, 1e4, 1e6, 1e8, -1e4, -1e8]
# A shift of all classes changes none of their results but logsumexp.
SHIFTED = [INDEX, PROBABILITIES, TWO_TERM, MAPS]
ROWS_AND_AXIS_0 = ("rows", "axis 0")

arrangements = pytest.mark.parametrize("way", ARRANGEMENTS)


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
@over(FAMILIES)
@pytest.mark.parametrize("classes", CLASSES)
def test_confident_rows(classes, family, dtype):
    """Right, wrong by the runner-up, wrong by another class. In one-hot rows p - c must not cancel either."""
    for spread in (False, True):
        x, top = confident(GAPS[dtype], classes, dtype, spread=spread)
        for label in (top,) if family is MAPS else (top, (top + 1) % classes, (top + 2) % classes):
            check_arranged(family, family.arguments(x, label))


@dtypes
@pytest.mark.parametrize("classes", CLASSES)
def test_loss_of_a_label_that_is_not_the_maximum(classes, dtype):
    """The gap does not count there: the table's bound is 4 eps."""
    for spread in (False, True):
        x, top = confident(GAPS[dtype], classes, dtype, spread=spread)
        labels = (top + 1) % classes
        loss = exact(x, labels, reduction="none").loss
        for way in ARRANGEMENTS.values():
            label = labels[None] if way.axis == 1 else labels
            got = fastce.cross_entropy(way.of(x), label, reduction="none", axis=way.axis)
            assert_within(way.back(got), loss._replace(extra=np.zeros_like(loss.extra)), "loss of row")


@dtypes
@over(SHIFTED)
@pytest.mark.parametrize("classes", [2, 5, 65, 1000])
@pytest.mark.parametrize("offset", OFFSETS)
def test_offsets(offset, classes, family, dtype):
    """A constant that is exact in the dtype changes no bound, and no result by more than the rounding of stats."""
    rng = np.random.default_rng(4)
    x = -rng.exponential(4, (133, classes))
    x[:, 0] = 0
    plain, shifted = on_grid(x, offset, dtype)
    labels = np.where(np.arange(133) % 2, rng.integers(0, classes, 133), 0)
    check_arranged(family, family.arguments(shifted, labels))
    if family in ONE_TERM or family is MAPS:
        for function in (f for f in family.functions if f.returns[0] in ("loss", "p", "logp")):
            got, want = function(*family.arguments(shifted, labels)), function(*family.arguments(plain, labels))
            np.testing.assert_allclose(
                got[function.returns[0]], want[function.returns[0]], rtol=10 * np.finfo(dtype).eps, atol=0
            )


# Two to these powers. Probabilities and the two-term form cost more memory and time; elements are not summed.
POWERS = [0, 2, 6, 10, 14]
MORE_POWERS = {"index": [18, 20], "probabilities": [18], "two_term": [17], "sigmoid": []}
family_and_power = pytest.mark.parametrize(
    "family, power",
    [(family, power) for family in FAMILIES for power in POWERS + MORE_POWERS.get(family.name, [18, 20])],
    ids=lambda v: getattr(v, "name", v),
)


@dtypes
@family_and_power
def test_many_classes(family, power, dtype):
    """Equal terms are rounded alike, so that nothing averages out: a float32 running sum drifts by C/2 eps."""
    classes = 1 << power
    x = np.zeros((4, classes), dtype)
    x[1] = np.random.default_rng(power).normal(size=classes)
    x[2, classes // 3] = 20.3 + np.log(classes)  # exp(-gap) is not a number of few bits
    x[3] = -0.1
    x[3, 0] = 0
    if power >= 17:
        x = x[2:]  # the constant rows
    arrays = family.arguments(x, np.argmax(x, axis=1))
    cases = [arrays]
    if family is not MAPS and power <= 16:
        cases.append(family.arguments(x, np.full(len(x), classes - 1)))
    if "upstream" in family.names:
        cases.append((np.full(x.shape, 1 / 3, dtype), arrays[1]))
    elif "targets" in family.names and family is not INDEX:
        cases.append((x, np.full(x.shape, 1 / classes, dtype), *arrays[2:]))
    for case in cases[-1:] if power == 20 else cases:
        check_arranged(family, case, ways=ROWS_AND_AXIS_0)


@dtypes
@over(FAMILIES)
@pytest.mark.parametrize("classes", MANY_CLASSES)
def test_random_rows_and_every_kind_of_target(classes, family, dtype):
    rng = np.random.default_rng(classes)
    n = 2 * classes + 133 if classes <= 130 else 40 if classes <= 1000 else 6
    x = (rng.normal(size=(n, classes)) * rng.choice([0.1, 1, 10, 30, 100], (n, 1))).astype(dtype)
    check_arranged(family, family.arguments(x, np.arange(n) % classes))
    if "logits" not in family.names:
        check_arranged(family, family.arguments(x))
    elif "targets" in family.names and not family.has_labels:
        x = x[:40]
        vectors = family.arguments(x)[2:]
        few = rng.random(x.shape) < 0.1  # bools
        for targets in (soft_targets(x.shape, dtype), few, np.zeros_like(x), np.ones_like(x)):
            check_arranged(family, (x, targets, *vectors), ways=ROWS_AND_AXIS_0)
            check_arranged(family, (x, targets, *vectors), ways=ROWS_AND_AXIS_0, copied=family.names)


# ---------------------------------------------------------------------------------------------------------------------
# Below the smallest normal number, and far beyond
# ---------------------------------------------------------------------------------------------------------------------


@dtypes
@arrangements
@pytest.mark.parametrize("classes", [2, 4, 9, 65, 130])
def test_underflow_is_gradual(classes, way, dtype):
    """Past the smallest normal number errors are a few of the smallest subnormal, and nothing is flushed to zero."""
    x, top = confident(SUBNORMAL_GAPS[dtype], classes, dtype, spread=False)
    way = ARRANGEMENTS[way]
    labels = top[None] if way.axis == 1 else top
    loss, grad = fastce.cross_entropy_with_grad(way.of(x), labels, reduction="none", axis=way.axis)
    loss, grad = way.back(loss), way.back(grad)
    want = exact(x, top, reduction="none")
    step, tiny = LD(np.finfo(dtype).smallest_subnormal), np.finfo(dtype).tiny
    # The loss and the label's element are sums of classes - 1 terms, each rounded by up to a step, then themselves.
    at_label = np.arange(classes) == top[:, None]
    elements = np.abs(want.grad.value)
    extra = want.gap[:, None] * elements
    assert_within(loss, Number(want.loss.value, want.loss.value, want.gap * want.loss.value, classes), "loss of row")
    assert_within(grad, Number(want.grad.value, elements, extra, np.where(at_label, classes, 2)), "gradient")
    assert (grad[elements > 2 * step] != 0).all() and (loss[want.loss.value > classes * step] != 0).all()
    assert ((np.abs(grad) > 0) & (np.abs(grad) < tiny)).any()

    want, p = MAPS.exact(x), way.back(fastce.softmax(way.of(x), axis=way.axis))
    assert_within(p, want.p, "softmax")
    assert (p > 0).all() and (p < tiny).any()
    logp = way.back(fastce.log_softmax(way.of(x), axis=way.axis))
    # at the maximum a sum of classes - 1 terms, each rounded by up to half a step
    assert_within(logp, want.logp._replace(floor=(classes + 1) / 2), "log_softmax")
    assert (logp[at_label][want.logp.value[at_label] < -(classes + 1) / 2 * step] != 0).all()


@pytest.mark.parametrize("classes, gap", [(1000, 88.0), (1000, 94.0), (2**18, 95.0), (2**18, 99.0)])
@arrangements
def test_sums_of_terms_below_the_smallest_normal_number(way, classes, gap):
    """Each exponential is subnormal or nearly so, and rounded alone would lose its digits; their sum is normal."""
    x = np.full((1, classes), -gap, F32)
    x[0, 0] = 0
    tail = (classes - 1) * np.exp(-LD(F32(gap)))
    assert tail > np.finfo(F32).tiny
    way = ARRANGEMENTS[way]
    logits = way.of(x)
    labels = np.zeros(np.delete(logits.shape, way.axis), int)
    loss, grad = fastce.cross_entropy_with_grad(logits, labels, axis=way.axis)
    bound = (CONTRACT_ULPS + gap) * np.finfo(F32).eps
    assert abs(loss / tail - 1) <= bound
    assert abs(-grad.ravel()[0] / tail - 1) <= bound


@dtypes
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_sigmoid_from_the_middle_to_ten_thousand(target, dtype):
    z = np.concatenate([[0, 1e-30, 1e-7, 0.1], np.linspace(0.5, 120, 240), np.geomspace(120, 1e4, 60), [1e30]])
    z = np.concatenate([-z[::-1], z]).astype(dtype)[:, None]
    check_arranged(SIGMOID, (z, np.full_like(z, target)))
    assert not np.isinf(fastce.binary_cross_entropy(z, np.full_like(z, target), reduction="none")).any()


@dtypes
def test_sigmoid_underflow_of_a_confident_element_is_gradual(dtype):
    """Its gradient is not p - 1, which is 0 there, but -sigmoid(-z), down to the smallest subnormal."""
    z = np.linspace(10, 100 if dtype is F32 else 740, 91).astype(dtype)[:, None]
    loss, grad = fastce.binary_cross_entropy_with_grad(z, np.ones_like(z), reduction="sum")
    assert (grad < 0).all() and loss > 0
    size = np.exp(-z.astype(LD)) / (1 + np.exp(-z.astype(LD)))
    assert_within(grad, Number(-size, size, z * size), "gradient")
    loss, grad = fastce.binary_cross_entropy_with_grad(-z, np.zeros_like(z), reduction="none")
    assert (grad > 0).all() and (loss > 0).all()


@dtypes
def test_sigmoid_with_targets_of_higher_precision_that_are_nearly_one(dtype):
    """1 - c is formed before c is rounded: float32 logits with float64 targets keep the second term."""
    z = np.linspace(-5, 50, 56).astype(dtype)[:, None]
    # c itself may be rounded to the logits' dtype; 1 - c may be rounded, not lost
    check(SIGMOID, (z, np.full(z.shape, 1 - 1e-10)), more=2)


@dtypes
@pytest.mark.parametrize("classes", [2, 3, 9, 65, 130])
@pytest.mark.parametrize("gap", [110.0, 800.0, 2e3, 1e4])  # exp(-gap) is 0 in float32, or in either
def test_two_term_form_where_the_tail_underflows(gap, classes, dtype):
    """p is 1 and 1 - p is 0 in the dtype; log(1-p) is not -inf, nor is p/(1-p) inf."""
    x, top = confident(np.array([gap]), classes, dtype)
    for c in (np.eye(classes, dtype=dtype), soft_targets((classes, classes), dtype)):
        want = check_arranged(TWO_TERM, (np.repeat(x, classes, axis=0), c))
        assert np.isfinite(want.loss.value).all() and np.isfinite(want.grad.value).all()
    wrong = np.eye(classes, dtype=dtype)[(top + 1) % classes]
    loss, grad = fastce.binary_cross_entropy_with_grad(x, wrong, activation="softmax", reduction="none")
    # gap for the label; for the maximum gap - log(sum of the others), which lies within log(classes) below
    assert 2 * gap - math.log(classes) <= loss[0] * (1 + 1e-6) and loss[0] <= 2 * gap * (1 + 1e-6)
    assert grad[0, top[0]] == pytest.approx(2, rel=1e-6)
    assert grad.sum() == pytest.approx(0, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# With options
# ---------------------------------------------------------------------------------------------------------------------

WITH_OPTIONS = [
    (family, name)
    for family in LOSSES
    for name in ("weight", "pos_weight", "sample_weight", "label_smoothing", "z_loss", "upstream", "all")
    if name in family.options or name == "all"
]
family_and_option = pytest.mark.parametrize("family, name", WITH_OPTIONS, ids=lambda v: getattr(v, "name", v))


@dtypes
@family_and_option
@pytest.mark.parametrize("classes", [2, 9, 65, 130])
def test_confident_rows_with_options(classes, family, name, dtype):
    x, top = confident(GAPS[dtype], classes, dtype)
    for labels in (top, (top + 1) % classes, None)[: 2 if family is INDEX else 3]:
        check_arranged(family, family.arguments(x, labels), more=OPTION_ULPS, **options_of(family, x, name))


@dtypes
@family_and_option
@pytest.mark.parametrize("classes", [3, 65, 5000])
def test_probabilities_with_options(classes, family, name, dtype):
    """Targets near the prediction, far from it, and nearly one-hot: 1e-6 and less beside nearly 1."""
    if family is INDEX:
        return
    rng = np.random.default_rng(9)
    n = 60 if classes < 1000 else 6
    x = (rng.normal(size=(n, classes)) * rng.choice([1, 10, 100], (n, 1))).astype(dtype)
    c = np.exp(x - x.max(axis=1, keepdims=True)) ** rng.choice([1, 3], (n, 1))
    c[::3] = rng.random((len(c[::3]), classes))
    c = (c / c.sum(axis=1, keepdims=True)).astype(dtype)
    for targets in (c, x > 0, x < 0) if family is SIGMOID else (c,):
        check_arranged(family, (x, targets), more=OPTION_ULPS, **options_of(family, x, name))


@dtypes
@over(LOSSES)
@pytest.mark.parametrize("power", [10, 14, 18])
def test_many_classes_with_options(power, family, dtype):
    if power > max(POWERS + MORE_POWERS[family.name]):
        return
    x = np.random.default_rng(10).normal(size=(2, 1 << power)).astype(dtype)
    x[1] = -0.1
    x[1, x.shape[1] // 3] = 0
    arrays = family.arguments(x, np.argmax(x, axis=1))
    if family is not INDEX:
        arrays = x, np.full(x.shape, 1 / 3 / x.shape[1], dtype)
    check_arranged(family, arrays, ways=ROWS_AND_AXIS_0, more=OPTION_ULPS, **options_of(family, x))


@dtypes
@over([INDEX, PROBABILITIES, TWO_TERM])
@pytest.mark.parametrize("offset", [1e4, 1e8, -1e4, -1e8])
def test_offsets_with_options(offset, family, dtype):
    rng = np.random.default_rng(11)
    _, x = on_grid(rng.normal(0, 9, (150, 10)), offset, dtype)
    check_arranged(family, family.arguments(x, rng.integers(0, 10, 150)), more=OPTION_ULPS, **options_of(family, x))
    check_arranged(family, family.arguments(x), more=OPTION_ULPS, **options_of(family, x))


@dtypes
@over(ONE_TERM)
@pytest.mark.parametrize("classes", [3, 65, 130])
def test_weight_on_few_classes(classes, family, dtype):
    """All but one class weigh little or nothing: what smoothing leaves to the others is not Q - q, rounded."""
    x, top = confident(GAPS[dtype], classes, dtype, spread=False)
    weight = np.full(classes, 1e-9, dtype)
    weight[1:3] = 1, 0
    for labels in (top, (top + 1) % classes):
        for smoothing in (1e-6, 0.5):
            check_arranged(
                family, family.arguments(x, labels), more=OPTION_ULPS, weight=weight, label_smoothing=smoothing
            )


@dtypes
@over(LOSSES)
def test_upstream_keeps_small_gradients(family, dtype):
    """Factors multiply the finished number: a gradient of 1e-33 (f32) is as accurate after scaling up as before."""
    x, top = confident(GAPS[dtype][::5], 7, dtype, spread=False)
    for upstream in (2.0**20, 0.3, 2.0**-10):
        check_arranged(family, family.arguments(x, top), more=1, reduction="sum", upstream=upstream)


@dtypes
@pytest.mark.parametrize("classes", [2, 9, 65, 130, 300])
def test_two_term_form_of_subnormal_probabilities_with_options(classes, dtype):
    """weight, sample_weight and upstream multiply the exact probability, not one that is rounded to a subnormal."""
    x, top = confident(SUBNORMAL_GAPS[dtype], classes, dtype, spread=False)
    rng = np.random.default_rng(12)
    options = {
        "weight": rng.uniform(1, 60, classes).astype(dtype),
        "sample_weight": rng.uniform(1, 60, len(x)).astype(dtype),
        "upstream": rng.uniform(1, 60, len(x)).astype(dtype),
    }
    for labels in (top, (top + 1) % classes):
        check_arranged(TWO_TERM, TWO_TERM.arguments(x, labels), more=OPTION_ULPS, **options)


@dtypes
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [3, 65, 130, 20_000])  # the last in several blocks
def test_two_term_form_with_targets_of_higher_precision_that_are_nearly_one(classes, weighted, dtype):
    rng = np.random.default_rng(13)
    n = 40 if classes < 1000 else 2
    x = (3 * rng.normal(size=(n, classes))).astype(dtype)
    weight = {"weight": rng.uniform(0.1, 9, classes).astype(dtype)} if weighted else {}
    targets = 1 - rng.uniform(0, 1e-9, x.shape)
    check_arranged(TWO_TERM, (x, targets), more=2 + OPTION_ULPS * weighted, **weight)
    check_arranged(TWO_TERM, (x, targets), more=2 + OPTION_ULPS * weighted, copied=TWO_TERM.names, **weight)


@dtypes
@pytest.mark.parametrize("classes", [2, 9, 65, 130, 1000, 20_000])
def test_two_term_form_of_equal_logits(classes, dtype):
    """The first maximum and others like it, and several runners-up."""
    rng = np.random.default_rng(14)
    x = rng.integers(0, 3, (40 if classes < 1000 else 3, classes)).astype(dtype)
    check_arranged(TWO_TERM, TWO_TERM.arguments(x, np.argmax(x, axis=1)))
    check_arranged(TWO_TERM, TWO_TERM.arguments(x))


# ---------------------------------------------------------------------------------------------------------------------
# Instruction sets
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_instruction_set_is_accurate(isa, tmp_path):
    """Classes along rows and across them; random, confident, right and wrong rows."""
    cases, calls = [], []
    sizes = (1, 2, 3, 7, 8, 9, 16, 17, 33, 65, 1000, 5003)
    for seed, (dtype, classes) in enumerate((dtype, size) for dtype in DTYPES for size in sizes):
        x = (numbers((21 if classes < 1000 else 3, classes), dtype, seed) * 3).astype(dtype)
        x[:2, classes // 2] = 80
        hot = one_hot_rows([classes // 2, 0], classes, dtype)
        for family in FAMILIES:
            for axis in (-1, 0):
                arrays = tuple(a if axis == -1 else np.ascontiguousarray(a.T) for a in family.arguments(x, seed=seed))
                if family in (PROBABILITIES, SIGMOID, TWO_TERM):
                    arrays[1][(slice(2),) if axis == -1 else (slice(None), slice(2))] = hot if axis == -1 else hot.T
                want = family.exact(*arrays, axis=axis)
                options = {"axis": axis} | family.fixed | ({"reduction": "none"} if family.is_reduced else {})
                for function in family.functions:
                    calls.append((function.name, arrays, options))
                    about = f"{function.id}, {classes} classes of {np.dtype(dtype)} on axis {axis}: "
                    cases.append((function.returns, want, about))
    for got, (names, want, about) in zip(computed_with(isa, calls, tmp_path), cases, strict=True):
        for name, value in zip(names, got if len(names) > 1 else (got,), strict=True):
            assert_within(value, getattr(want, name), about + name)
