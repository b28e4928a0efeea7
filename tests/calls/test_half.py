"""Calls with float16 and bfloat16 arrays: they give what float32 arrays of the same numbers give, rounded, wherever the
arrays lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from calling import BY_NAME, CASES, F32, SHAPES, Case, each_case, takes_out
from layouts import LAYOUTS, NOT_ONE_STRIDE

import fastce

F16 = np.float16
BF16 = getattr(pytest.importorskip("ml_dtypes"), "bfloat16")  # noqa: B009  -- its stub is not needed
halves = pytest.mark.parametrize("dtype", [F16, BF16], ids=["float16", "bfloat16"])
# These read half precision while they compute. The others convert the array first.
TAKE_HALF = ("cross", "Cross", "softmax", "log_softmax", "logsumexp", "entropy")
STAGED = [case for case in CASES if case.name.startswith(TAKE_HALF)]
STAGED = [case for case in STAGED if not case.name.endswith("_softmax_grad") and case.name != "softmax_grad"]


def in_half(case: Case, shape: tuple[int, ...], dtype: Any) -> dict[str, np.ndarray]:
    made = case.make(shape)
    made[case.main] = made[case.main].astype(dtype)
    if "row_max" in made:
        wide = made["logits"].astype(F32)
        made["row_max"], made["tail"] = fastce.cross_entropy(wide, made["targets"], return_stats=True)[1]
    return made


def assert_rounded(case: Case, got: dict[str, Any], want: dict[str, Any], dtype: Any, about: object) -> None:
    """The float32 results, those in the shape of the logits in their dtype."""
    for name, value in want.items():
        mine, theirs = np.asarray(got[name]), np.asarray(value)
        if case.results[name] == "whole" and name != "loss":
            theirs = theirs.astype(dtype)
        assert mine.dtype == theirs.dtype, f"{name} {about}"
        if mine.shape and mine.size > 4096 and case.targets:  # long rows are added in blocks of another length
            allowed = 0.01 if mine.dtype == BF16 else 1e-3 if mine.dtype == F16 else 1e-6
            np.testing.assert_allclose(mine.astype(F32), theirs.astype(F32), rtol=allowed, atol=1e-7)
            continue
        np.testing.assert_array_equal(mine.astype(np.float64), theirs.astype(np.float64), err_msg=f"{name} {about}")


@halves
@each_case()
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_those_of_float32_rounded(shape: tuple[int, ...], case: Case, dtype: Any) -> None:
    arguments = in_half(case, shape, dtype)
    want = case(arguments | {case.main: arguments[case.main].astype(F32)})
    for num_threads in (1, 2):
        got = case(arguments, num_threads=num_threads)
        assert_rounded(case, got, want, dtype, f"{num_threads} threads")


@halves
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", STAGED, ids=str)
def test_layouts(case: Case, layout: str, dtype: Any) -> None:
    if dtype is BF16 and "swapped" in layout:
        pytest.skip("ml_dtypes has no other byte order")
    for shape in ((33, 10), (120, 60), (5, 300), (4, 6, 10), (3, 5000)):
        arguments = in_half(case, shape, dtype)
        x = arguments[case.main]
        laid = LAYOUTS[layout](x)
        want = case(arguments | {case.main: LAYOUTS[layout](x.astype(F32))})
        assert_rounded(case, case(arguments | {case.main: laid}), want, dtype, f"{layout}, {shape}")
        np.testing.assert_array_equal(laid.astype(F32), x.astype(F32), err_msg="logits were modified")


@halves
@pytest.mark.parametrize("layout", NOT_ONE_STRIDE)
@pytest.mark.parametrize("name", ["cross_entropy_with_grad, labels, options", "log_softmax", "logsumexp"])
def test_rows_at_several_distances(name: str, layout: str, dtype: Any) -> None:
    case = BY_NAME[name]
    for shape in ((5, 7, 9), (3, 4, 70), (3, 2, 5000)):
        arguments = in_half(case, shape, dtype)
        x = NOT_ONE_STRIDE[layout](arguments[case.main])
        want = case(arguments | {case.main: NOT_ONE_STRIDE[layout](arguments[case.main].astype(F32))})
        assert_rounded(case, case(arguments | {case.main: x}), want, dtype, f"{layout}, {shape}")


@halves
@each_case(takes_out)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(33, 10), (5, 300), (2, 9000)], ids=str)
def test_out_and_in_place(shape: tuple[int, ...], order: Any, case: Case, dtype: Any) -> None:
    arguments = in_half(case, shape, dtype)
    arguments[case.main] = np.array(arguments[case.main], order=order)
    want = case(arguments)
    result = np.asarray(want[case.out])
    outs = [np.empty_like(result), np.zeros((*result.shape[:-1], 2 * result.shape[-1]), result.dtype)[..., ::2]]
    for out in outs:
        got = case(arguments, out=out)
        assert got[case.out] is out
        np.testing.assert_array_equal(out.astype(F32), result.astype(F32))
    if case.results[case.out] == "whole":
        given = arguments[case.main].copy(order="K")
        got = case(arguments | {case.main: given}, out=given)
        assert got[case.out] is given
        np.testing.assert_array_equal(given.astype(F32), result.astype(F32))


@halves
def test_a_wrong_out_is_refused(dtype: Any) -> None:
    x, labels = np.zeros((4, 3), dtype), np.zeros(4, int)
    for wrong in (np.zeros((4, 3), F32), np.zeros((4, 3), np.uint16), np.zeros((4, 3), BF16 if dtype is F16 else F16)):
        with pytest.raises(ValueError, match=f"out has dtype {wrong.dtype}, expected {np.dtype(dtype)} to match"):
            fastce.cross_entropy_with_grad(x, labels, out=wrong)
    with pytest.raises(ValueError, match="out has shape"):
        fastce.softmax(x, out=np.zeros((3, 4), dtype))
    with pytest.raises(ValueError, match=r"out has dtype float(16|64)|out has dtype bfloat16"):
        fastce.logsumexp(x, out=np.zeros(4, dtype))
    stats = fastce.SoftmaxStats(np.zeros(4, F16), np.zeros(4, F16))
    with pytest.raises(ValueError, match="stats.row_max has dtype float16, expected float32 to match logits"):
        fastce.cross_entropy_grad(x, labels, stats=stats)


@halves
@pytest.mark.parametrize("of", [F32, np.float64])
def test_other_arguments_of_that_dtype(of: Any, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for shape in ((20, 5), (6, 300), (2, 5000)):
        x = rng.normal(size=shape).astype(of)
        targets, upstream = rng.random(shape).astype(dtype), rng.random(shape[0]).astype(dtype)
        weight, sample = rng.random(shape[1]).astype(dtype), rng.random(shape[0]).astype(dtype)
        for order in "CF":
            narrow = {"weight": weight, "sample_weight": sample, "upstream": upstream}
            wide = {name: a.astype(of) for name, a in narrow.items()}
            t = np.array(targets, order=order)
            for more in ({}, {"label_smoothing": 0.1}):
                got = fastce.cross_entropy_with_grad(x, t, reduction="none", **narrow, **more)
                want = fastce.cross_entropy_with_grad(x, t.astype(of), reduction="none", **wide, **more)
                for mine, theirs in zip(got, want, strict=True):
                    np.testing.assert_allclose(mine, theirs, rtol=1e-5 if of is F32 else 1e-13, atol=1e-6)
            for activation in ("sigmoid", "softmax"):
                got = fastce.binary_cross_entropy(x, t, activation=activation)
                want = fastce.binary_cross_entropy(x, t.astype(of), activation=activation)
                np.testing.assert_allclose(got, want, rtol=1e-5 if of is F32 else 1e-13)


@halves
def test_class_indices_of_that_dtype_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="targets has dtype"):
        fastce.cross_entropy(np.zeros((4, 3), dtype), np.zeros(4, dtype))


@halves
def test_layer_and_reference(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(300, 100)).astype(dtype), rng.integers(100, size=300)
    ce = fastce.CrossEntropyLoss(reuse_grad=True)
    loss, grad = fastce.cross_entropy_with_grad(x, labels)
    assert ce(x, labels) == loss
    np.testing.assert_allclose(ce.backward().astype(F32), grad.astype(F32), rtol=0.01)
    assert ce.backward() is ce.backward()
    by_definition = fastce.reference.cross_entropy_with_grad(x, labels)
    assert by_definition[1].dtype == dtype
    np.testing.assert_allclose(by_definition[0], loss, rtol=1e-6)
    np.testing.assert_allclose(by_definition[1].astype(F32), grad.astype(F32), rtol=0.01, atol=1e-6)
    for name in ("softmax", "log_softmax", "logsumexp"):
        mine, theirs = getattr(fastce, name)(x), getattr(fastce.reference, name)(x)
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine.astype(F32), theirs.astype(F32), rtol=0.01)


@halves
def test_reference_returns_and_writes_that_dtype(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, labels, v = rng.normal(size=(30, 10)).astype(dtype), rng.integers(10, size=30), rng.normal(size=(30, 10))
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("cross_entropy_grad_hess", (x, labels)),
        ("cross_entropy_hvp", (x, labels, v)),
        ("entropy_with_grad", (x,)),
        ("kl_divergence_with_grad", (x, v)),
    ]
    for name, arrays in calls:
        got, want = getattr(fastce.reference, name)(*arrays), getattr(fastce, name)(*arrays)
        whole = [a for a in (got if isinstance(got, tuple) else (got,)) if a.shape]
        for mine, theirs in zip(
            whole, [a for a in (want if isinstance(want, tuple) else (want,)) if a.shape], strict=True
        ):
            assert mine.dtype == theirs.dtype == dtype
            np.testing.assert_allclose(mine.astype(F32), theirs.astype(F32), rtol=0.01, atol=1e-5)
        outs = tuple(np.empty_like(a) for a in whole)
        getattr(fastce.reference, name)(*arrays, out=outs if len(outs) > 1 else outs[0])
        for mine, out in zip(whole, outs, strict=True):
            np.testing.assert_array_equal(out.astype(F32), mine.astype(F32))


@halves
def test_evaluate(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for shape in ((50, 30), (20, 300), (3, 5000)):
        x, labels = rng.normal(size=shape).astype(dtype), rng.integers(shape[1], size=shape[0])
        for order in "CF":
            laid = np.array(x, order=order)
            got, want = fastce.evaluate(laid, labels), fastce.evaluate(laid.astype(F32), labels)
            assert (got.loss, got.accuracy, got.entropy) == (want.loss, want.accuracy, want.entropy)


@halves
def test_predict(dtype: Any) -> None:
    x = np.random.default_rng(0).normal(size=(50, 30)).astype(dtype)
    np.testing.assert_array_equal(fastce.predict(x), x.astype(F32).argmax(-1))
    np.testing.assert_array_equal(fastce.predict(x.T, axis=0), x.astype(F32).argmax(-1))


@halves
def test_streamed_gradients(dtype: Any) -> None:
    """A large gradient is written past the caches, a small one is not. Rows begin anywhere in a line."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(0, 3, (150, 43013)).astype(dtype), rng.integers(43013, size=150)
    x[3, 77] = x[4, 78] = np.nan
    grad = fastce.cross_entropy_grad(x, labels, reduction="sum", upstream=1000.0)
    for rows in (slice(0, 75), slice(75, 150)):  # fewer would be divided into parts
        part = fastce.cross_entropy_grad(x[rows], labels[rows], reduction="sum", upstream=1000.0)
        np.testing.assert_array_equal(part.view(np.uint16), grad[rows].view(np.uint16))


@halves
def test_several_axes(dtype: Any) -> None:
    x = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(dtype)
    for axis in ((0, 2), None):
        for name in ("softmax", "log_softmax", "logsumexp"):
            call = getattr(fastce, name)
            got, want = call(x, axis=axis), call(x.astype(F32), axis=axis)
            assert got.dtype == (F32 if name == "logsumexp" else dtype)
            np.testing.assert_array_equal(got.astype(F32), want.astype(got.dtype).astype(F32))
    out = np.empty((1, 5, 1), F32)
    assert fastce.logsumexp(x, axis=(0, 2), keepdims=True, out=out) is out
