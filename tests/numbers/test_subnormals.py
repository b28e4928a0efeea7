"""subnormals="flush": the numbers that "keep" gives, but 0 with their sign where they are below the threshold."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from functions import F32, FUNCTIONS, INDEX, MAPS, PROBABILITIES, dtypes, over
from isa import AVAILABLE, computed_with
from layouts import unaligned

import fastce

BELOW = {np.dtype("f4"): 2.0**-100, np.dtype("f8"): 2.0**-900}
WRITERS = [f for f in FUNCTIONS if "subnormals" in inspect.signature(getattr(fastce, f.name)).parameters]
SHAPES = [(1, 1), (33, 3), (9, 17), (40, 70), (20, 300), (5, 1000), (3, 5000), (2, 40_000)]
writers = over(WRITERS)


def flushed(values):
    """What is expected of the numbers that were kept."""
    return np.where(np.abs(values) < BELOW[values.dtype], np.copysign(0, values), values).astype(values.dtype)


def assert_flushed(got, kept, about=""):
    np.testing.assert_array_equal(got, flushed(kept), err_msg=about)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(kept), err_msg=about)
    numbers = ~np.isnan(got)
    assert not ((np.abs(got[numbers]) < BELOW[got.dtype]) & (got[numbers] != 0)).any(), about


def arguments(function, shape, dtype, axis=-1):
    """Rows with probabilities of every size, those of the products too."""
    rng = np.random.default_rng(shape[axis])
    # 2^-100 is exp(-69), and 2^-900 exp(-624)
    x = (rng.standard_normal(shape) * (40 if dtype is F32 else 300)).astype(dtype)
    return function.family.arguments(x, axis=axis)


def spread(a):
    """The same array with gaps in memory."""
    wide = np.zeros([2 * n for n in a.shape], a.dtype)
    every_second = wide[tuple(slice(None, None, 2) for _ in a.shape)]
    every_second[...] = a
    return every_second


def options_of(function, shape, axis=-1):
    rng = np.random.default_rng(1)
    classes, rows = shape[axis], tuple(np.delete(shape, axis))
    every = {
        "weight": rng.uniform(0.5, 2, classes),
        "sample_weight": rng.uniform(0.5, 2, rows),
        "label_smoothing": 1e-31,
        "z_loss": 1e-3,
        "temperature": 0.7,
        "softcap": 1e3,
        "upstream": rng.normal(size=rows if function.family.by_row else shape),
    }
    return {name: value for name, value in every.items() if name in function.options}


def result(function, arrays, **options):
    return function(*arrays, **options)[function.out or "grad"]


def cases_of(function, shape, axis=-1):
    """Without options, with all, with single ones that choose other code."""
    every = options_of(function, shape, axis)
    yield {}
    yield every
    for name in ("label_smoothing", "temperature", "softcap", "upstream"):
        if name in every:
            yield {name: every[name]}


@writers
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_of_any_length(shape, dtype, function):
    arrays = arguments(function, shape, dtype)
    for options in cases_of(function, shape):
        kept = result(function, arrays, **options)
        got = result(function, arrays, **options, subnormals="flush")
        assert_flushed(got, kept, f"{list(options)}")
        np.testing.assert_array_equal(result(function, arrays, **options, subnormals="keep"), kept)


@writers
@dtypes
@pytest.mark.parametrize(
    ("shape", "axis", "order"),
    [((40, 70), 0, "C"), ((40, 70), -1, "F"), ((3, 11, 8, 5), 1, "C"), ((5000, 3), 0, "C"), ((70, 1100), 0, "C")],
    ids=str,
)
def test_other_layouts(shape, axis, order, dtype, function):
    arrays = tuple(np.asarray(a, order=order) for a in arguments(function, shape, dtype, axis))
    for options in cases_of(function, shape, axis):
        kept = result(function, arrays, axis=axis, **options)
        got = result(function, arrays, axis=axis, **options, subnormals="flush")
        assert_flushed(got, kept, f"{list(options)}")
        several = result(function, arrays, axis=axis, **options, subnormals="flush", num_threads=3)
        assert several.tobytes() == got.tobytes()
    for elsewhere in (spread, unaligned):
        moved = tuple(elsewhere(a) for a in arrays)
        assert_flushed(result(function, moved, axis=axis, subnormals="flush"), result(function, moved, axis=axis))


@over([f for f in WRITERS if f.out])
@dtypes
@pytest.mark.parametrize("shape", [(33, 3), (40, 70), (2, 5000)], ids=str)
def test_in_place(shape, dtype, function):
    arrays = arguments(function, shape, dtype)
    at = 1 if "y" in function.family.names else 0
    kept, out = result(function, arrays), arrays[at].copy()
    given = (*arrays[:at], out, *arrays[at + 1 :])
    assert result(function, given, out=out, subnormals="flush") is out
    assert_flushed(out, kept)


@dtypes
def test_gradients_that_are_written_past_the_caches(dtype):
    """Few long rows, and classes on axis 0."""
    rng = np.random.default_rng(0)
    for shape, axis in (((4, 4_000_000 // np.dtype(dtype).itemsize), -1), ((100, 24_000), 0)):
        x = (rng.standard_normal(shape, np.float32) * (40 if dtype is F32 else 300)).astype(dtype)
        for function in (INDEX.functions[1], PROBABILITIES.functions[2], MAPS.functions[0]):
            arrays = function.family.arguments(x, axis=axis)
            kept = result(function, arrays, axis=axis)
            assert_flushed(result(function, arrays, axis=axis, subnormals="flush", num_threads=2), kept)
        u = rng.standard_normal(shape, np.float32).astype(dtype)
        y = fastce.softmax(x, axis=axis)
        assert_flushed(fastce.softmax_grad(u, y, axis=axis, subnormals="flush"), fastce.softmax_grad(u, y, axis=axis))


@writers
@dtypes
def test_special_values_are_kept(dtype, function):
    for classes in (5, 70, 300, 5000):
        arrays = arguments(function, (8, classes), dtype)
        x = arrays[-1] if "y" in function.family.names else arrays[0]
        x[1, 2], x[2, 2], x[3, ::2], x[4] = np.nan, np.inf, -np.inf, -np.inf
        x[5, 1:] = x[5, 0] - 1000  # confident
        assert_flushed(
            result(function, arrays, subnormals="flush"), result(function, arrays), f"{function.id}, {classes}"
        )


@dtypes
def test_the_label_and_the_maximum_too(dtype):
    """Their gradients are computed apart."""
    x = np.zeros((2, 3), dtype)
    x[:, 0] = -np.log(BELOW[np.dtype(dtype)]) + 5
    for classes in (3, 70, 5000):
        rows = np.full((2, classes), -np.inf, dtype)
        rows[:, :3] = x
        for options in ({}, {"weight": np.ones(classes), "label_smoothing": 1e-300}):
            loss, grad = fastce.cross_entropy_with_grad(rows, [0, 1], reduction="sum", **options)
            assert 0 < abs(grad[0, 0]) < BELOW[grad.dtype]
            got_loss, got = fastce.cross_entropy_with_grad(rows, [0, 1], reduction="sum", subnormals="flush", **options)
            assert got_loss == loss
            assert_flushed(got, grad)


@dtypes
def test_products_with_what_is_left_are_normal(dtype):
    info = np.finfo(dtype)
    x = (np.random.default_rng(0).standard_normal((50, 200)) * 100).astype(dtype)
    _, grad = fastce.cross_entropy_with_grad(x, np.zeros(50, int), reduction="sum", subnormals="flush")
    left = np.abs(grad[grad != 0])
    assert len(left) > 100
    assert (left * dtype(2.0**-26 if dtype is F32 else 2.0**-122) >= info.tiny).all()


def test_the_layer():
    x, labels = (np.random.default_rng(0).standard_normal((9, 30)) * 60).astype(F32), np.arange(9)
    for options in ({}, {"reuse_grad": True}):
        ce = fastce.CrossEntropyLoss(subnormals="flush", **options)
        assert ce(x, labels) == fastce.cross_entropy(x, labels)
        assert_flushed(ce.backward(), fastce.cross_entropy_grad(x, labels))
    assert repr(fastce.CrossEntropyLoss(subnormals="flush")) == "CrossEntropyLoss(subnormals='flush')"


def test_the_floating_point_environment_is_not_touched():
    tiny = np.array([2.0**-140], F32)
    x, labels = (np.random.default_rng(0).standard_normal((9, 30)) * 60).astype(F32), np.arange(9)
    fastce.cross_entropy_with_grad(x, labels, subnormals="flush")
    assert (tiny * F32(0.5))[0] == 2.0**-141


@pytest.mark.parametrize("isa", AVAILABLE)
def test_every_instruction_set(isa, tmp_path):
    calls, about = [], []
    for function in WRITERS:
        for shape in ((9, 3), (20, 33), (5, 1000), (2, 5000)):
            arrays = arguments(function, shape, F32)
            (arrays[-1] if "y" in function.family.names else arrays[0])[1, -1] = np.nan
            options = function.family.fixed | ({"reduction": "none"} if function.family.is_loss else {})
            for subnormals in ("keep", "flush"):
                calls.append((function.name, arrays, options | {"subnormals": subnormals}))
            about.append(f"{function.id}, {shape}")
    got = [r[-1] if isinstance(r, (tuple, list)) else r for r in computed_with(isa, calls, tmp_path)]
    for kept, flush, text in zip(got[::2], got[1::2], about, strict=True):
        assert_flushed(np.asarray(flush), np.asarray(kept), text)


@dtypes
def test_the_reference(dtype):
    for function in WRITERS:
        arrays = arguments(function, (9, 30), dtype)
        kept = function(*arrays, package=fastce.reference)[function.out or "grad"]
        got = function(*arrays, package=fastce.reference, subnormals="flush")[function.out or "grad"]
        assert_flushed(got, kept)
