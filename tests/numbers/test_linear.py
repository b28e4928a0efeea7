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
    ({"return_stats": True}, TypeError, "unexpected keyword argument 'return_stats'"),
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
