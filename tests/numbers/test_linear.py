"""The loss of a linear layer, its gradients and its evaluation, in chunks of every size, are those of its logits.
Errors are raised before anything is written, and memory stays within the bound that is promised."""

from __future__ import annotations

import pickle
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from functions import F32, F64, INDEX, combinations, dtypes

import fastce
from fastce import LinearGrads, reference

ROWS, FEATURES, CLASSES = 30, 6, 40
OPTIONS = [pytest.param(options, id=" ".join(options) or "none") for options in combinations(INDEX)]
CHUNKS = [None, 7 * CLASSES * 8, 1]  # one chunk, several, one row each
chunks = pytest.mark.parametrize("chunk_bytes", CHUNKS)


class Case:
    """Hidden states, a weight, a bias and labels, of which some are ignored."""

    def __init__(self, dtype: Any = F64, lead: tuple[int, ...] = (ROWS,), seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.hidden = rng.standard_normal((*lead, FEATURES)).astype(dtype)
        self.weight = rng.standard_normal((CLASSES, FEATURES)).astype(dtype)
        self.bias = rng.standard_normal(CLASSES).astype(dtype)
        self.labels = np.asarray(rng.integers(CLASSES, size=lead))
        if self.labels.ndim:
            self.labels.flat[::7] = -100
        self.sample_weight, self.upstream = rng.random(lead), rng.standard_normal(lead)
        self.class_weight = rng.random(CLASSES) + 0.1

    def options(self, chosen: dict[str, Any]) -> dict[str, Any]:
        random = {"weight": self.class_weight, "sample_weight": self.sample_weight}
        return {name: random.get(name, value) for name, value in chosen.items()}

    def logits(self, bias: bool = True) -> np.ndarray:
        return self.hidden @ self.weight.T + (self.bias if bias else 0)

    def grads(self, grad: np.ndarray) -> LinearGrads:
        rows, hidden = grad.reshape(-1, CLASSES), self.hidden.reshape(-1, FEATURES)
        return LinearGrads(grad @ self.weight, rows.T @ hidden, rows.sum(axis=0))


def assert_close(got: Any, want: Any, dtype: Any = F64) -> None:
    for name, mine, theirs in zip(LinearGrads._fields, got, want, strict=True):
        tolerance = 3e-5 if dtype is F32 else 1e-13
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance, err_msg=name)


@dtypes
@chunks
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_option(reduction: str, options: dict[str, Any], chunk_bytes: int | None, dtype: Any) -> None:
    case = Case(dtype)
    options = case.options(options) | {"reduction": reduction}
    upstream = case.upstream if reduction == "none" else 3.0
    want, grad = fastce.cross_entropy_with_grad(case.logits(), case.labels, upstream=upstream, **options)
    arguments = case.hidden, case.weight, case.labels
    options |= {"linear_bias": case.bias, "chunk_bytes": chunk_bytes}
    loss, grads = fastce.linear_cross_entropy_with_grad(*arguments, upstream=upstream, **options)
    assert_close(grads, case.grads(grad), dtype)
    tolerance = 1e-5 if dtype is F32 else 1e-13
    for got in (loss, fastce.linear_cross_entropy(*arguments, **options)):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    ce = fastce.LinearCrossEntropyLoss(reduction=reduction)
    del options["reduction"]
    np.testing.assert_array_equal(ce(*arguments, **options), loss)
    assert_close(ce.backward(upstream), grads, dtype)
    del options["chunk_bytes"]
    ce = reference.LinearCrossEntropyLoss(reduction=reduction)
    np.testing.assert_allclose(ce(*arguments, **options), loss, rtol=3e-5 if dtype is F32 else 1e-12)
    assert_close(ce.backward(upstream), grads, dtype)


@dtypes
@chunks
@pytest.mark.parametrize("lead", [(ROWS,), (5, 6), ()], ids=str)
def test_stats(lead: tuple[int, ...], chunk_bytes: int | None, dtype: Any) -> None:
    """They are those of the logits. Rows that do not count have those of no classes."""
    case = Case(dtype, lead)
    _, want = fastce.cross_entropy(case.logits(), case.labels, temperature=0.7, return_stats=True)
    counted = case.labels != -100
    options = {"linear_bias": case.bias, "temperature": 0.7, "return_stats": True}
    arguments = case.hidden, case.weight, case.labels
    loss, stats = fastce.linear_cross_entropy(*arguments, **options, chunk_bytes=chunk_bytes)
    other_loss, grads, other = fastce.linear_cross_entropy_with_grad(*arguments, **options, chunk_bytes=chunk_bytes)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    assert isinstance(grads, LinearGrads)
    twins = [reference.linear_cross_entropy(*arguments, **options)[-1]]
    twins += [reference.linear_cross_entropy_with_grad(*arguments, **options)[-1]]
    for found in (stats, other, *twins):
        for part, wanted, nothing in zip(found, want, (-np.inf, -1), strict=True):
            assert part.dtype == dtype and part.shape == lead
            np.testing.assert_allclose(part, np.where(counted, wanted, nothing), rtol=1e-5)


@dtypes
@chunks
@pytest.mark.parametrize("lead", [(), (1,), (5, 6), (2, 3, 5), (0,), (3, 0)], ids=str)
def test_any_number_of_axes(lead: tuple[int, ...], chunk_bytes: int | None, dtype: Any) -> None:
    case = Case(dtype, lead)
    for options in ({}, {"reduction": "none"}, {"reduction": "sum"}, {"normalizer": 4.0}):
        want, grad = fastce.cross_entropy_with_grad(case.logits(), case.labels, **options)
        options = options | {"linear_bias": case.bias, "chunk_bytes": chunk_bytes}
        loss, grads = fastce.linear_cross_entropy_with_grad(case.hidden, case.weight, case.labels, **options)
        np.testing.assert_allclose(loss, want, rtol=1e-5)
        assert np.shape(loss) == np.shape(want)
        assert_close(grads, case.grads(grad), dtype)
        assert grads.hidden.shape == case.hidden.shape


@chunks
@pytest.mark.parametrize("which", ["hidden", "weight", "labels", "all"])
@pytest.mark.parametrize("how", ["Fortran", "reversed", "every second", "transposed", "swapped bytes", "list"])
def test_any_layout(how: str, which: str, chunk_bytes: int | None) -> None:
    case = Case(F64, (5, 6))
    ways: dict[str, Any] = {
        "Fortran": np.asfortranarray,
        "reversed": lambda a: a[::-1].copy()[::-1],
        "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        "transposed": lambda a: np.ascontiguousarray(a.T).T,
        "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder()),
        "list": np.ndarray.tolist,
    }
    arrays = {"hidden": case.hidden, "weight": case.weight, "labels": case.labels}
    want = fastce.linear_cross_entropy_with_grad(*arrays.values())
    laid = {name: ways[how](a) if which in (name, "all") else a for name, a in arrays.items()}
    loss, grads = fastce.linear_cross_entropy_with_grad(*laid.values(), chunk_bytes=chunk_bytes)
    np.testing.assert_allclose(loss, want[0], rtol=1e-14)
    assert_close(grads[:2] + (0,), want[1][:2] + (0,))
    np.testing.assert_allclose(fastce.linear_cross_entropy(*laid.values(), chunk_bytes=chunk_bytes), loss, rtol=1e-14)


@dtypes
@chunks
def test_rows_that_do_not_count_may_hold_anything(chunk_bytes: int | None, dtype: Any) -> None:
    case = Case(dtype)
    ignored = case.labels == -100
    options: dict[str, Any] = {"linear_bias": case.bias, "chunk_bytes": chunk_bytes}
    want = fastce.linear_cross_entropy_with_grad(case.hidden[~ignored], case.weight, case.labels[~ignored], **options)
    case.hidden[ignored] = np.nan
    some = np.where(ignored, 0, case.labels)
    for labels, more in ((case.labels, {}), (some, {"sample_weight": (~ignored).astype(float)})):
        for package in (fastce, reference):
            given = (options if package is fastce else {"linear_bias": case.bias}) | more
            loss, grads = package.linear_cross_entropy_with_grad(case.hidden, case.weight, labels, **given)
            np.testing.assert_allclose(loss, want[0], rtol=1e-5)
            kept = np.nan_to_num(grads.hidden)[~ignored]
            assert_close((kept, grads.weight, grads.bias), want[1], dtype)
            if package is fastce:
                assert (grads.hidden[ignored] == 0).all()


@chunks
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_counts(reduction: str, chunk_bytes: int | None) -> None:
    case = Case()
    labels = np.full(ROWS, -100)
    out = LinearGrads(np.full_like(case.hidden, 7), np.full_like(case.weight, 7), np.full_like(case.bias, 7))
    options: dict[str, Any] = {"linear_bias": case.bias, "reduction": reduction, "chunk_bytes": chunk_bytes}
    loss, grads = fastce.linear_cross_entropy_with_grad(case.hidden, case.weight, labels, out=out, **options)
    assert grads is out
    assert np.isnan(loss) if reduction == "mean" else (loss == 0).all()
    assert not any(a.any() for a in out)
    for a in out:
        a[...] = 7
    fastce.linear_cross_entropy_with_grad(case.hidden, case.weight, labels, out=out, accumulate=True, **options)
    assert all((a == 7).all() for a in out)
    # Weights of 0: rows count, but for nothing.
    loss, grads = fastce.linear_cross_entropy_with_grad(
        case.hidden, case.weight, np.zeros(ROWS, int), weight=np.zeros(CLASSES), **options
    )
    assert np.isnan(loss) if reduction == "mean" else (loss == 0).all()
    assert not grads.hidden.any() and not grads.weight.any()


@pytest.mark.parametrize("order", ["C", "F", "strided"])
@chunks
def test_out_and_accumulate(chunk_bytes: int | None, order: str) -> None:
    case = Case(F64, (5, 6))
    options: dict[str, Any] = {"linear_bias": case.bias, "chunk_bytes": chunk_bytes}
    arguments = case.hidden, case.weight, case.labels
    _, want = fastce.linear_cross_entropy_with_grad(*arguments, **options)

    def buffer(a: np.ndarray) -> np.ndarray:
        if order == "strided":
            return np.full((*a.shape, 2), 7.0)[..., 1]
        return np.full(a.shape, 7.0, order=order)  # type: ignore[arg-type]

    out = LinearGrads(*map(buffer, want))
    _, got = fastce.linear_cross_entropy_with_grad(*arguments, **options, out=out)
    assert got is out
    assert_close(out, want)
    fastce.linear_cross_entropy_with_grad(*arguments, **options, out=out, accumulate=True)
    assert_close(out, [2 * a for a in want])
    ce = fastce.LinearCrossEntropyLoss(chunk_bytes=chunk_bytes)
    ce(*arguments, linear_bias=case.bias)
    assert ce.backward(3.0, out=out) is out
    assert_close(out, [3 * a for a in want])
    ce.backward(2.0, out=out, accumulate=True)
    assert_close(out, [5 * a for a in want])


def test_parts_of_a_batch_add_up() -> None:
    case = Case()
    case.labels[case.labels < 0] = 0
    loss, want = fastce.linear_cross_entropy_with_grad(case.hidden, case.weight, case.labels)
    out, total = LinearGrads(np.empty_like(case.hidden), np.empty_like(case.weight), None), 0.0
    for start in range(0, ROWS, 8):
        part = slice(start, start + 8)
        total += fastce.linear_cross_entropy_with_grad(
            case.hidden[part], case.weight, case.labels[part], normalizer=ROWS, accumulate=start > 0,
            out=out._replace(hidden=np.zeros_like(case.hidden[part])),
        )[0]  # fmt: skip
    assert total == pytest.approx(loss)
    np.testing.assert_allclose(out.weight, want.weight, rtol=1e-12, atol=1e-15)


@dtypes
def test_subnormal_gradients_are_flushed(dtype: Any) -> None:
    """Products of the others show it: BLAS would keep what is smaller."""
    small = 2.0**-110 if dtype is F32 else 2.0**-950
    hidden, weight = np.ones((1, 1), dtype), np.array([[0], [np.log(small)]], dtype)
    _, grads = fastce.linear_cross_entropy_with_grad(hidden, weight, [0])
    assert not grads.weight.any()
    _, grad = fastce.cross_entropy_with_grad(weight.T, [0])
    assert grad.all()


@dtypes
def test_gradients_are_within_the_rounding_of_sums(dtype: Any) -> None:
    """8 eps times the root of the number of chunks, of the sum of the terms' sizes."""
    rng = np.random.default_rng(1)
    hidden, weight = rng.standard_normal((512, 32)).astype(dtype), rng.standard_normal((300, 32)).astype(dtype)
    labels, bias = rng.integers(300, size=512), rng.standard_normal(300).astype(dtype)
    for rows in (512, 64, 8):
        _, grads = fastce.linear_cross_entropy_with_grad(
            hidden, weight, labels, linear_bias=bias, reduction="sum", chunk_bytes=rows * 300 * hidden.itemsize
        )
        wide = hidden.astype(np.longdouble), weight.astype(np.longdouble)
        logits = wide[0] @ wide[1].T + bias
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        g = p.copy()
        g[np.arange(512), labels] -= 1
        sizes = np.abs(wide[0]) @ np.abs(wide[1]).T + np.abs(bias)  # of the terms of the logits, which are rounded
        off = np.abs(g) + p * (sizes + (p * sizes).sum(axis=1, keepdims=True))
        room = 8 * np.finfo(dtype).eps * (512 / rows) ** 0.5
        assert (np.abs(grads.weight - g.T @ wide[0]) <= room * (off.T @ np.abs(wide[0]))).all()
        assert (np.abs(grads.hidden - g @ wide[1]) <= room * (off @ np.abs(wide[1]))).all()
        assert (np.abs(grads.bias - g.sum(axis=0)) <= room * off.sum(axis=0)).all()


@chunks
def test_evaluation(chunk_bytes: int | None) -> None:
    case = Case(F32, (5, 6))
    for options in ({}, {"temperature": 2.0}, {"softcap": 1.5, "top_k": (1, 3)}, {"ignore_index": None}):
        labels = np.maximum(case.labels, 0) if "ignore_index" in options else case.labels
        want, want_rows = fastce.evaluate(case.logits(), labels, return_rows=True, **options)
        options = options | {"linear_bias": case.bias, "chunk_bytes": chunk_bytes}
        got, rows = fastce.evaluate_linear(case.hidden, case.weight, labels, return_rows=True, **options)
        assert got.top_k == want.top_k and got.rows == want.rows
        assert got.loss == pytest.approx(want.loss, rel=1e-6)
        assert repr(fastce.evaluate_linear(case.hidden, case.weight, labels, **options)) == repr(got)
        for name, mine, theirs in zip(rows._fields, rows, want_rows, strict=True):
            assert mine.shape == (5, 6) and mine.dtype == theirs.dtype, name
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6, err_msg=name)


def test_evaluation_of_one_row_and_of_none() -> None:
    case = Case(F32, ())
    got, rows = fastce.evaluate_linear(case.hidden, case.weight, case.labels, return_rows=True)
    assert got.rows == 1 and np.ndim(rows.rank) == 0
    got, rows = fastce.evaluate_linear(case.hidden[None][:0], case.weight, [], return_rows=True)
    assert got.rows == 0 and rows.rank.shape == (0,)


@pytest.mark.parametrize("chunk_mib", [1, 4])
@pytest.mark.parametrize("way", ["plain", "ignored", "strided"])
def test_memory_is_bounded(way: str, chunk_mib: int) -> None:
    """The logits would take 64 MiB."""
    rng = np.random.default_rng(0)
    hidden, weight = rng.standard_normal((2, 1024, 32)).astype(F32), rng.standard_normal((8192, 32)).astype(F32)
    labels = rng.integers(8192, size=(2, 1024))
    if way == "ignored":
        labels[:, ::2] = -100
    if way == "strided":
        hidden = np.repeat(hidden, 2, axis=1)[:, ::2]
    bound = (1.25 * chunk_mib + 24) * 2**20
    size = chunk_mib * 2**20
    for call, returned in (
        (lambda: fastce.linear_cross_entropy_with_grad(hidden, weight, labels, chunk_bytes=size), 2**18 + 2**20),
        (lambda: fastce.linear_cross_entropy(hidden, weight, labels, chunk_bytes=size), 0),
        (lambda: fastce.evaluate_linear(hidden, weight, labels, chunk_bytes=size), 0),
    ):
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= bound + returned
        assert peak <= 1.25 * size + returned + 4 * 2**20  # what the 24 MiB are for: blocks, labels, sums by class


def test_the_layer() -> None:
    case = Case()
    ce = fastce.LinearCrossEntropyLoss(label_smoothing=0.1, chunk_bytes=5000)
    assert repr(ce) == "LinearCrossEntropyLoss(label_smoothing=0.1, chunk_bytes=5000)"
    with pytest.raises(RuntimeError, match="backward called before the loss"):
        ce.backward()
    for options in ({}, {"z_loss": 0.1}, {"reduction": "none"}):
        ce(case.hidden, case.weight, case.labels, linear_bias=case.bias, **options)
        want = fastce.linear_cross_entropy_with_grad(
            case.hidden, case.weight, case.labels, linear_bias=case.bias, label_smoothing=0.1, **options
        )[1]
        assert_close(ce.backward(), want)
        assert_close(ce.backward(), want)
    copy = pickle.loads(pickle.dumps(ce))
    assert repr(copy) == repr(ce)
    assert len(pickle.dumps(ce)) < 500
    with pytest.raises(RuntimeError, match="backward called"):
        copy.backward()
    for wrong in ("axis", "return_stats", "upstream", "label_smooting"):
        with pytest.raises(TypeError, match=f"LinearCrossEntropyLoss has no option '{wrong}'"):
            fastce.LinearCrossEntropyLoss(**{wrong: 1})
    ce(case.hidden, case.weight, case.labels)
    with pytest.raises(ValueError, match=r"upstream has shape \(30,\), expected a scalar"):
        ce.backward(case.upstream)


def test_memory_of_a_chunk_is_kept_by_the_layer() -> None:
    case, ce = Case(), fastce.LinearCrossEntropyLoss()
    ce(case.hidden, case.weight, case.labels)
    kept = ce._scratch._memory["logits"]
    ce(case.hidden[:20], case.weight, case.labels[:20])
    assert ce._scratch._memory["logits"] is kept


X, W, B, Y = Case().hidden, Case().weight, Case().bias, Case().labels
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hidden": None}, TypeError, "^hidden is None"),
    ({"hidden": X.astype(int)}, TypeError, "^hidden has dtype int64, expected float32 or float64; cast it"),
    ({"hidden": X.astype(np.float16)}, TypeError, "^hidden has dtype float16"),
    ({"hidden": np.ma.masked_array(X)}, TypeError, "^hidden is a masked array"),
    ({"hidden": 1.0}, ValueError, "^hidden is a scalar"),
    ({"hidden": X[:, :3]}, ValueError, r"^hidden has shape \(30, 3\), expected 6 features on the last axis"),
    ({"linear_weight": W.T}, ValueError, r"^hidden has shape \(30, 6\), expected 40 features"),
    ({"linear_weight": W[0]}, ValueError, r"^linear_weight has shape \(6,\), expected \(classes, features\)"),
    ({"linear_weight": W.astype(F32)}, TypeError, "^linear_weight has dtype float32, expected float64 to match hidden"),
    ({"linear_weight": W[:0], "linear_bias": None}, ValueError, "no classes"),
    ({"linear_bias": B[:3]}, ValueError, r"^linear_bias has shape \(3,\), expected \(40,\)"),
    ({"linear_bias": "1"}, TypeError, "^linear_bias has dtype"),
    ({"targets": Y[:3]}, ValueError, r"^targets has shape \(3,\), expected \(30,\): a class index for each row"),
    ({"targets": np.zeros((30, 40))}, ValueError, r"^targets has shape \(30, 40\), expected \(30,\)"),
    ({"targets": Y.astype(float)}, TypeError, "^targets has dtype float64"),
    ({"targets": None}, TypeError, "^targets is None"),
    ({"targets": np.where(np.arange(30) == 4, 40, Y)}, IndexError, r"^targets\[4\] is 40, out of range for 40 classes"),
    ({"targets": np.where(np.arange(30) == 29, -1, Y)}, IndexError, r"^targets\[29\] is -1"),
    ({"sample_weight": np.ones(3)}, ValueError, r"^sample_weight has shape \(3,\)"),
    ({"sample_weight": np.full(30, -1.0)}, ValueError, r"^sample_weight\[0\] is -1\.0"),
    ({"weight": np.ones(3)}, ValueError, r"^weight has shape \(3,\)"),
    ({"label_smoothing": 2}, ValueError, "^label_smoothing is 2"),
    ({"temperature": 0}, ValueError, "^temperature is 0"),
    ({"softcap": -1}, ValueError, "^softcap is -1"),
    ({"reduction": "avg"}, ValueError, "^reduction is 'avg'"),
    ({"normalizer": 0}, ValueError, "^normalizer"),
    ({"normalizer": 1.0, "reduction": "sum"}, ValueError, "^normalizer .*'sum'"),
    ({"num_threads": 0}, ValueError, "^num_threads is 0"),
    ({"chunk_bytes": 0}, ValueError, "^chunk_bytes is 0, expected an int >= 1"),
    ({"chunk_bytes": 1.5}, TypeError, r"^chunk_bytes is 1\.5"),
    ({"upstream": np.ones(30)}, ValueError, r"^upstream has shape \(30,\)"),
    ({"upstream": np.ones(3), "reduction": "none"}, ValueError, r"^upstream has shape \(3,\)"),
    ({"axis": 0}, TypeError, r"^linear_cross_entropy_with_grad\(\) got an unexpected keyword argument 'axis'"),
    ({"out": (X, W, B)}, TypeError, "^out is tuple, expected LinearGrads"),
    ({"accumulate": True, "out": None}, ValueError, "^accumulate is True without out"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=[" ".join(w[0]) + w[2] for w in WRONG])
def test_wrong_arguments(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    out = LinearGrads(np.full_like(X, 7), np.full_like(W, 7), np.full_like(B, 7))
    arguments: dict[str, Any] = {
        "hidden": X, "linear_weight": W, "targets": Y, "linear_bias": B, "out": out, "chunk_bytes": 3 * 8 * CLASSES,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        fastce.linear_cross_entropy_with_grad(**arguments | wrong)
    assert all((a == 7).all() for a in out)
    if not {"out", "accumulate", "upstream"} & wrong.keys():
        given = arguments | wrong
        del given["out"]
        with pytest.raises(error, match=message.replace("_with_grad", "")):
            fastce.linear_cross_entropy(**given)


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize(
    ("buffers", "error", "message"),
    [
        ({"hidden": X[:3].copy()}, ValueError, r"out.hidden has shape \(3, 6\), expected \(30, 6\)"),
        ({"weight": W.astype(F32)}, ValueError, "out.weight has dtype float32, expected float64"),
        ({"bias": None}, TypeError, "out.bias is NoneType, expected numpy.ndarray"),
        ({"weight": read_only(W)}, ValueError, "out.weight is read-only"),
        ({"hidden": X}, ValueError, "out.hidden and hidden share memory"),
        ({"weight": W}, ValueError, "out.weight and linear_weight share memory"),
    ],
    ids=str,
)
def test_wrong_buffers(buffers: dict[str, Any], error: type[Exception], message: str) -> None:
    out = LinearGrads(np.full_like(X, 7), np.full_like(W, 7), np.full_like(B, 7))
    before = X.copy(), W.copy()
    with pytest.raises(error, match=re.escape(message) if "(" not in message else message):
        fastce.linear_cross_entropy_with_grad(X, W, Y, linear_bias=B, out=out._replace(**buffers))
    assert all((a == 7).all() for a in out)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(W, before[1])


def test_buffers_may_not_share_memory() -> None:
    memory = np.zeros(400)
    out = LinearGrads(memory[:180].reshape(30, 6), memory[100:340].reshape(40, 6), None)
    with pytest.raises(ValueError, match=r"out\.hidden and out\.weight share memory"):
        fastce.linear_cross_entropy_with_grad(X, W, Y, out=out)
    with pytest.raises(ValueError, match=r"out\.bias is given, but there is no linear_bias"):
        fastce.linear_cross_entropy_with_grad(X, W, Y, out=LinearGrads(X.copy(), W.copy(), B.copy()))


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_errstate(threads: int) -> None:
    case = Case(F32)
    with np.errstate(all="raise"):
        loss, grads = fastce.linear_cross_entropy_with_grad(
            case.hidden * 1e-20, case.weight, case.labels, num_threads=threads, chunk_bytes=2000
        )
    assert np.isfinite(loss) and np.isfinite(grads.weight).all()


def test_a_mean_is_that_of_all_rows_where_sums_overflow() -> None:
    """A chunk's sum of losses is not finite in float32. Neither is the reciprocal of a sum of tiny sample weights."""
    large = np.finfo(F32).max / 8
    hidden, weight, labels = np.full((20, 1), large, F32), np.array([[0], [1]], F32), np.zeros(20, int)
    assert fastce.linear_cross_entropy(hidden, weight, labels) == pytest.approx(large)
    loss, grads = fastce.linear_cross_entropy_with_grad(hidden, weight, labels, chunk_bytes=64)
    assert loss == pytest.approx(large)
    np.testing.assert_allclose(grads.hidden, 0.05, rtol=1e-6)
    for size in (1e-310, 1e300):
        sample_weight = np.full(20, size)
        want = fastce.cross_entropy(hidden[:, :0] @ weight[:, :0].T, labels, sample_weight=sample_weight)
        got = fastce.linear_cross_entropy(hidden * 0, weight, labels, sample_weight=sample_weight, chunk_bytes=64)
        assert got == pytest.approx(want, rel=1e-5)


@chunks
def test_options_may_be_lists_and_of_any_dtype(chunk_bytes: int | None) -> None:
    case = Case(F64, (5, 6))
    want = fastce.linear_cross_entropy_with_grad(
        case.hidden, case.weight, case.labels, weight=case.class_weight, sample_weight=case.sample_weight,
        linear_bias=case.bias, upstream=case.upstream, reduction="none",
    )  # fmt: skip
    for change in (np.ndarray.tolist, lambda a: a.astype(np.longdouble), lambda a: np.repeat(a, 2, axis=-1)[..., ::2]):
        loss, grads = fastce.linear_cross_entropy_with_grad(
            case.hidden, case.weight, case.labels, weight=change(case.class_weight), upstream=change(case.upstream),
            sample_weight=change(case.sample_weight), linear_bias=change(case.bias), reduction="none",
            chunk_bytes=chunk_bytes,
        )  # fmt: skip
        np.testing.assert_allclose(loss, want[0], rtol=1e-13)
        assert_close(grads, want[1])


@chunks
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64"])
def test_labels_of_any_integer_dtype(dtype: str, chunk_bytes: int | None) -> None:
    case = Case()
    kept = case.labels >= 0
    labels = np.where(kept, case.labels, 200).astype(dtype)
    want = fastce.linear_cross_entropy(case.hidden, case.weight, case.labels)
    for ignored in (200, np.int64(200)):
        got = fastce.linear_cross_entropy(
            case.hidden, case.weight, labels, ignore_index=ignored, chunk_bytes=chunk_bytes
        )
        assert got == pytest.approx(want, rel=1e-14)
    some = np.where(kept, labels, 0).astype(dtype)
    want = fastce.linear_cross_entropy(case.hidden, case.weight, np.maximum(case.labels, 0))
    for ignored in (-100, None, 10**30):  # no label can be the first and the last
        got = fastce.linear_cross_entropy(case.hidden, case.weight, some, ignore_index=ignored, chunk_bytes=chunk_bytes)
        assert got == pytest.approx(want, rel=1e-14)


@dtypes
@chunks
def test_masked_classes(chunk_bytes: int | None, dtype: Any) -> None:
    """A bias of -inf masks a class: its probability and gradients are 0."""
    case = Case(dtype)
    case.labels[case.labels == 5] = 6
    case.bias[5] = -np.inf
    options: dict[str, Any] = {"linear_bias": case.bias, "chunk_bytes": chunk_bytes}
    loss, grads = fastce.linear_cross_entropy_with_grad(case.hidden, case.weight, case.labels, **options)
    want, grad = fastce.cross_entropy_with_grad(case.logits(), case.labels)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert_close(grads, case.grads(grad), dtype)
    assert not grads.weight[5].any() and grads.bias[5] == 0


@chunks
def test_rows_of_nan(chunk_bytes: int | None) -> None:
    """They make their own results NaN, and the sums that they are in, without a warning."""
    case = Case(F32)
    case.labels[3], case.hidden[3] = 1, np.nan
    with np.errstate(all="raise"):
        loss, grads = fastce.linear_cross_entropy_with_grad(
            case.hidden, case.weight, case.labels, reduction="none", chunk_bytes=chunk_bytes
        )
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(loss)), [3])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(grads.hidden).any(axis=1)), [3])
    assert np.isnan(grads.weight).all()


@pytest.mark.parametrize("rows", [0, 4])
def test_no_features(rows: int) -> None:
    loss, grads = fastce.linear_cross_entropy_with_grad(
        np.zeros((rows, 0)), np.zeros((5, 0)), np.zeros(rows, int), linear_bias=np.zeros(5), reduction="sum"
    )
    assert loss == pytest.approx(rows * np.log(5))
    assert grads.hidden.shape == (rows, 0) and grads.weight.shape == (5, 0)
    np.testing.assert_allclose(grads.bias, np.array([-0.8, 0.2, 0.2, 0.2, 0.2]) * rows)


@chunks
def test_ignored_rows_are_not_evaluated(chunk_bytes: int | None) -> None:
    case = Case(F32)
    ignored = case.labels == -100
    kept, options = ~ignored, {"return_rows": True, "chunk_bytes": chunk_bytes}
    want, want_rows = fastce.evaluate_linear(case.hidden[kept], case.weight, case.labels[kept], **options)
    case.hidden[ignored] = np.nan
    got, rows = fastce.evaluate_linear(case.hidden, case.weight, case.labels, **options)
    assert got.hits == want.hits and got.rows == want.rows == kept.sum()
    assert got.loss == pytest.approx(want.loss, rel=1e-6)
    _, of_ignored = fastce.evaluate(np.zeros((1, CLASSES), F32), [-100], return_rows=True)
    for name, mine, theirs, nothing in zip(rows._fields, rows, want_rows, of_ignored, strict=True):
        np.testing.assert_allclose(mine[kept], theirs, rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(mine[ignored], np.repeat(nothing, ignored.sum()), err_msg=name)


# Rows, features, classes; how `hidden` and the buffers lie; whether rows are ignored; whether gradients are added.
ODD = [
    pytest.param((2048, 2048, 8), "C", False, False, id="wide"),
    pytest.param((2048, 2048, 8), "C", False, True, id="wide, accumulated"),
    pytest.param((2048, 2048, 8), "C", True, True, id="wide, ignored, accumulated"),
    pytest.param((2048, 2048, 8), "strided", True, True, id="wide, strided, ignored, accumulated"),
    pytest.param((2048, 2048, 8), "transposed", False, True, id="wide, transposed, accumulated"),
    pytest.param((2048, 2048, 8), "F", False, False, id="wide, Fortran"),
    pytest.param((3, 4, 390_000), "C", False, False, id="less than two rows a chunk"),
    pytest.param((500_000, 2, 3), "C", False, False, id="many rows"),
    pytest.param((500_000, 2, 3), "C", True, False, id="many rows, ignored"),
]


@pytest.mark.parametrize(("shape", "order", "ignored", "accumulate"), ODD)
def test_memory_of_odd_shapes_is_bounded(
    shape: tuple[int, int, int], order: str, ignored: bool, accumulate: bool
) -> None:
    rows, features, classes = shape
    size = 2**21
    hidden, weight = np.zeros((rows, features), F32), np.zeros((classes, features), F32)
    labels: np.ndarray = np.arange(rows) % classes
    grad = np.zeros_like(hidden)
    if order == "strided":
        hidden, grad = np.repeat(hidden, 2, axis=1)[:, ::2], np.repeat(grad, 2, axis=1)[:, ::2]
    if order == "F":
        hidden, grad = np.asfortranarray(hidden), np.asfortranarray(grad)
    if order == "transposed":
        hidden, grad = (a.reshape(32, -1, features).transpose(1, 0, 2) for a in (hidden, grad))
        labels = labels.reshape(hidden.shape[:2])
    if ignored:
        labels[..., ::2] = -100
    sample_weight = np.ones(labels.shape)
    out = LinearGrads(grad, np.zeros_like(weight), None)
    fastce.linear_cross_entropy_with_grad(hidden[:0], weight, labels[:0])
    tracemalloc.start()
    fastce.linear_cross_entropy_with_grad(
        hidden, weight, labels, sample_weight=sample_weight, out=out, accumulate=accumulate, chunk_bytes=size
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 1.25 * size + 24 * 2**20
    if rows < 10_000:
        assert peak <= 1.25 * size + 6 * 2**20


def test_buffers_may_not_share_memory_with_any_argument() -> None:
    memory = np.zeros((30, 6))
    out = LinearGrads(memory, np.zeros_like(W), np.zeros(CLASSES))
    before = out.weight.copy()
    for name, value in (
        ("targets", memory.view(np.int64)[:, 0]),
        ("sample_weight", memory[:, 1]),
        ("weight", memory.reshape(-1)[:CLASSES]),
        ("linear_bias", memory.reshape(-1)[-CLASSES:]),
        ("upstream", memory[:, 5]),
    ):
        arguments: dict[str, Any] = {"hidden": X, "linear_weight": W, "targets": Y, "linear_bias": B}
        with pytest.raises(ValueError, match=r"out\.hidden shares memory with an argument"):
            fastce.linear_cross_entropy_with_grad(**arguments | {name: value}, reduction="none", out=out)
        assert not memory.any() and (out.weight == before).all()


def test_the_layer_keeps_no_gradients_while_it_computes_others() -> None:
    rng = np.random.default_rng(0)
    hidden, weight = rng.standard_normal((8, 512)).astype(F32), np.zeros((4096, 512), F32)
    ce = fastce.LinearCrossEntropyLoss()
    tracemalloc.start()
    for _ in range(2):
        ce(hidden, weight, np.arange(8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * weight.nbytes


def test_results_are_the_same_for_every_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    hidden, weight = rng.standard_normal((600, 16)).astype(F32), rng.standard_normal((1000, 16)).astype(F32)
    labels, bias = rng.integers(1000, size=600), rng.standard_normal(1000).astype(F32)
    want = None
    for threads in (1, 2, 3, None):
        loss, grads = fastce.linear_cross_entropy_with_grad(
            hidden, weight, labels, linear_bias=bias, num_threads=threads, chunk_bytes=2**20
        )
        got = [np.asarray(a).tobytes() for a in (loss, *grads)]
        assert want is None or got == want
        want = got
