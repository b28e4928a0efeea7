"""fastce.integrations.dask: the results of fastce on the whole array, from chunks along rows and classes, without
computing before it is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastce

dask = pytest.importorskip("dask", reason="dask is not installed")
pytest.importorskip("dask.array", reason="dask.array is not installed")

import dask.array as da  # noqa: E402

from fastce.integrations import _dask_tasks  # noqa: E402
from fastce.integrations import dask as lazy  # noqa: E402

ROWS, CLASSES = 60, 24
CHUNKS: dict[str, Any] = {
    "one": (60, 24),
    "rows": (25, 24),
    "classes": (60, 7),
    "both": ((10, 35, 15), (1, 20, 3)),
    "single rows": ((1,) * 60, (12, 12)),
}
WHOLE = {"one", "rows"}  # the classes are in one chunk
RNG = np.random.default_rng(12)
WEIGHT, SAMPLE_WEIGHT = RNG.uniform(0.5, 2, CLASSES), RNG.uniform(0, 2, ROWS)
SAMPLE_WEIGHT[7] = 0
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none", "upstream": np.linspace(-1, 1, ROWS)},
    "no ignore_index": {"ignore_index": None},
    "weight": {"weight": WEIGHT},
    "sample_weight": {"sample_weight": SAMPLE_WEIGHT, "upstream": 3.0},
    "all": {"weight": WEIGHT, "sample_weight": SAMPLE_WEIGHT, "label_smoothing": 0.1, "z_loss": 0.01},
    "normalizer": {"normalizer": 7.5, "temperature": 0.7},
    "softcap": {"softcap": 2.0, "subnormals": "flush"},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


def example(dtype: Any, kind: str, ignored: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(13)
    x = (3 * rng.standard_normal((ROWS, CLASSES))).astype(dtype)
    if kind == "probabilities":
        return x, rng.dirichlet(np.ones(CLASSES), ROWS).astype(dtype)
    labels = rng.integers(0, CLASSES, ROWS)
    if ignored:  # most of the first chunk
        labels[:9] = -100
        x[3] = np.nan
    return x, labels


def forward(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in ("upstream", "subnormals")}


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_and_gradient_are_those_of_the_whole_array(dtype: Any, kind: str, name: str, chunks: str) -> None:
    options = OPTIONS[name]
    x, targets = example(dtype, kind, name != "no ignore_index")
    want, wanted_grad = fastce.cross_entropy_with_grad(x, targets, **options)
    logits = da.from_array(x, chunks=CHUNKS[chunks])
    loss, grad = lazy.cross_entropy_with_grad(logits, targets, **options)
    alone = lazy.cross_entropy(logits, targets, **forward(options))
    for result, expected in ((loss, want), (alone, want), (grad, wanted_grad)):
        assert result.dtype == expected.dtype
        assert result.shape == expected.shape
        assert type(result._meta) is type(np.empty(0))
        assert result._meta.dtype == expected.dtype
    assert grad.chunks == logits.chunks
    if options.get("reduction") == "none":
        assert loss.chunks == alone.chunks == logits.chunks[:1]
    computed = dask.compute(loss, grad, alone)
    for result, lazily in zip(computed, (loss, grad, alone), strict=True):
        assert (result.dtype, result.shape) == (lazily.dtype, lazily.shape)
    assert type(computed[0]) is type(want)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(computed[0], want, rtol=16 * eps)
    np.testing.assert_allclose(computed[2], want, rtol=16 * eps)
    if chunks in WHOLE:
        np.testing.assert_array_equal(computed[1], wanted_grad)
    else:
        size = np.abs(wanted_grad).max(axis=1, keepdims=True)
        assert (np.abs(computed[1] - wanted_grad) <= 16 * eps * size).all()
        np.testing.assert_array_equal(computed[1][:3] == 0, wanted_grad[:3] == 0)


@pytest.mark.parametrize("chunks", [((2, 3), (10, 2), (4,)), ((5,), (5, 5, 2), (1, 3)), ((5,), (12,), (4,))], ids=str)
def test_the_classes_are_on_any_axis_and_targets_in_any_chunks(chunks: Any) -> None:
    x, labels = RNG.standard_normal((5, 12, 4)), RNG.integers(0, 12, (5, 4))
    sample_weight = RNG.random((5, 4))
    logits = da.from_array(x, chunks=chunks)
    options: dict[str, Any] = {"axis": 1, "weight": np.arange(12.0), "label_smoothing": 0.2}
    want, wanted_grad = fastce.cross_entropy_with_grad(x, labels, sample_weight=sample_weight, **options)
    for given in (labels, labels.tolist(), da.from_array(labels, chunks=(5, 1)), da.from_array(labels, chunks=(1, 3))):
        weights = da.from_array(sample_weight, chunks=2)
        options["weight"] = da.arange(12.0, chunks=5)
        loss, grad = lazy.cross_entropy_with_grad(logits, given, sample_weight=weights, **options)
        got, got_grad = dask.compute(loss, grad)
        np.testing.assert_allclose(got, want, rtol=1e-14)
        np.testing.assert_allclose(got_grad, wanted_grad, rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("chunks", [5, 2])
def test_a_single_row(chunks: int) -> None:
    x = RNG.standard_normal(5)
    logits = da.from_array(x, chunks=chunks)
    want, wanted_grad = fastce.cross_entropy_with_grad(x, 2)
    loss, grad = dask.compute(*lazy.cross_entropy_with_grad(logits, 2))
    np.testing.assert_allclose(loss, want, rtol=1e-15)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-14)
    assert lazy.predict(logits).compute() == fastce.predict(x)
    np.testing.assert_allclose(lazy.logsumexp(logits, keepdims=True).compute(), [fastce.logsumexp(x)], rtol=1e-15)
    assert lazy.evaluate(logits, 2).compute().loss == fastce.evaluate(x, 2).loss


@pytest.mark.parametrize("chunks", [(30, 24), (30, 8)], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.bool_, ">f4"])
def test_other_dtypes_of_logits(dtype: Any, chunks: Any) -> None:
    x, labels = example(np.float64, "labels", False)
    x = (x > 0) if dtype is np.bool_ else x.astype(dtype)
    want, wanted_grad = fastce.cross_entropy_with_grad(x, labels)
    loss, grad = lazy.cross_entropy_with_grad(da.from_array(x, chunks=chunks), labels)
    assert (loss.dtype, grad.dtype) == (want.dtype, wanted_grad.dtype)
    np.testing.assert_allclose(loss.compute(), want, rtol=1e-6)
    np.testing.assert_allclose(
        grad.compute().astype(float), wanted_grad.astype(float), rtol=2**-10 if dtype is np.float16 else 1e-5, atol=1e-7
    )


@pytest.mark.parametrize("chunks", CHUNKS)
def test_nothing_that_counts(chunks: str) -> None:
    x, labels = example(np.float32, "labels")
    logits = da.from_array(x, chunks=CHUNKS[chunks])
    for options in ({"sample_weight": np.zeros(ROWS)}, {"weight": np.zeros(CLASSES)}):
        loss, grad = dask.compute(*lazy.cross_entropy_with_grad(logits, labels, **options))
        assert np.isnan(loss)
        assert not grad.any()
        assert np.isnan(lazy.cross_entropy(logits, labels, **options).compute())
    loss, grad = dask.compute(*lazy.cross_entropy_with_grad(logits, np.full(ROWS, -100)))
    assert np.isnan(loss)
    assert not grad.any()
    assert lazy.cross_entropy(logits, np.full(ROWS, -100), reduction="sum").compute() == 0


@pytest.mark.parametrize("chunks", [5, (5, 2)], ids=str)
def test_no_rows(chunks: Any) -> None:
    logits = da.zeros((0, 5), chunks=chunks)
    loss, grad = dask.compute(*lazy.cross_entropy_with_grad(logits, []))
    assert np.isnan(loss)
    assert grad.shape == (0, 5)
    assert lazy.cross_entropy(logits, [], reduction="sum").compute() == 0


@pytest.mark.parametrize("chunks", CHUNKS)
def test_rows_that_hold_anything(chunks: str) -> None:
    x, labels = example(np.float64, "labels", False)
    x[0, :20] = -np.inf
    x[1] = -np.inf
    x[2, 5] = np.inf
    x[3, 6] = np.nan
    labels[[0, 1, 2, 3]] = 23
    labels[4], x[4, 7] = 7, -np.inf
    logits = da.from_array(x, chunks=CHUNKS[chunks])
    want, wanted_grad = fastce.cross_entropy_with_grad(x, labels, reduction="none")
    loss, grad = dask.compute(*lazy.cross_entropy_with_grad(logits, labels, reduction="none"))
    np.testing.assert_allclose(loss, want, rtol=1e-14)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-13, atol=1e-16)
    with np.errstate(all="raise"):
        np.testing.assert_equal(lazy.cross_entropy(logits, labels).compute(), np.nan)
    np.testing.assert_allclose(lazy.logsumexp(logits).compute(), fastce.logsumexp(x), rtol=1e-14)
    np.testing.assert_allclose(lazy.softmax(logits).compute(), fastce.softmax(x), rtol=1e-13, atol=1e-16)
    np.testing.assert_array_equal(lazy.predict(logits).compute(), fastce.predict(x))


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.3}, {"softcap": 2.0}], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_and_its_relatives(dtype: Any, options: dict[str, Any], chunks: str) -> None:
    x, _ = example(dtype, "labels", False)
    x[:, 2] += np.linspace(0, 40, ROWS).astype(dtype)
    logits, eps = da.from_array(x, chunks=CHUNKS[chunks]), float(np.finfo(dtype).eps)
    spread = 8 + (x.max(axis=1, keepdims=True) - x) / options.get("temperature", 1)
    for name, rtol in (("softmax", spread), ("log_softmax", 16), ("logsumexp", 16)):
        want = getattr(fastce, name)(x, **options)
        result = getattr(lazy, name)(logits, **options)
        assert (result.dtype, result.shape) == (want.dtype, want.shape)
        assert result.chunks == logits.chunks[: result.ndim]
        got = result.compute()
        if chunks in WHOLE:
            np.testing.assert_array_equal(got, want)
        else:  # the distance from the maximum is what the errors of exp, and of log1p of it, are relative to
            rtol = rtol if name == "softmax" else rtol + (60 if name == "log_softmax" else 0)
            assert (np.abs(got - want) <= rtol * eps * np.abs(want) + np.finfo(dtype).tiny).all()
    kept = lazy.logsumexp(logits, keepdims=True, **options)
    assert kept.chunks == (logits.chunks[0], (1,))
    np.testing.assert_array_equal(kept.compute()[:, 0], lazy.logsumexp(logits, **options).compute())


@pytest.mark.parametrize("chunks", CHUNKS)
def test_evaluations(chunks: str) -> None:
    x, labels = example(np.float32, "labels")
    logits = da.from_array(x, chunks=CHUNKS[chunks])
    want, wanted_rows = fastce.evaluate(x, labels, top_k=(1, 3), return_rows=True)
    evaluation, rows = lazy.evaluate(logits, da.from_array(labels, chunks=20), top_k=(1, 3), return_rows=True)
    for result, expected in zip(rows, wanted_rows, strict=True):
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    got, got_rows = dask.compute(evaluation, tuple(rows))
    for result, expected in zip(got_rows, wanted_rows, strict=True):
        np.testing.assert_array_equal(result, expected)
    assert isinstance(got, fastce.Evaluation)
    assert (got.rows, got.right, got.hits) == (want.rows, want.right, want.hits)
    assert got.loss == pytest.approx(want.loss, rel=1e-6)
    assert evaluation.accuracy.compute() == want.accuracy
    alone = lazy.evaluate(logits, labels, top_k=3).compute()
    assert alone.top_k == {3: want.top_k[3]}


# --- graphs -----------------------------------------------------------------------------------------------------------


class Source:
    """An array that counts how often each block is read."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.ndim = array, array.shape, array.dtype, array.ndim
        self.reads: Counter[str] = Counter()

    def __getitem__(self, index: Any) -> np.ndarray:
        part = self.array[index]
        if part.size:
            self.reads[str(index)] += 1
        return part


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("chunks", [(10, 24), (10, 6)], ids=str)
def test_nothing_is_computed_before_and_each_block_is_read_once(chunks: Any, scheduler: str) -> None:
    x, labels = example(np.float32, "labels", False)
    source, names = Source(x), Source(labels)
    logits = da.from_array(source, chunks=chunks)
    targets = da.from_array(names, chunks=10)
    loss, grad = lazy.cross_entropy_with_grad(logits, targets, weight=WEIGHT, sample_weight=SAMPLE_WEIGHT)
    results = [lazy.cross_entropy(logits, targets), *lazy.evaluate(logits, targets, return_rows=True)[1]]
    results += [function(logits) for function in (lazy.softmax, lazy.log_softmax, lazy.logsumexp, lazy.predict)]
    assert not source.reads
    assert not names.reads
    with dask.config.set(scheduler=scheduler):
        dask.compute(loss, grad, grad.sum(axis=0))
    assert len(source.reads) == logits.npartitions
    assert set(source.reads.values()) == {1}
    assert set(names.reads.values()) == {1}


@pytest.mark.parametrize("blocks", [40, 400])
@pytest.mark.parametrize("chunked", ["rows", "both"])
@pytest.mark.parametrize("labels_are", ["numpy", "dask"])
def test_at_most_twelve_tasks_for_each_block(labels_are: str, chunked: str, blocks: int) -> None:
    rows, classes = (blocks, 1) if chunked == "rows" else (blocks // 4, 4)
    logits = da.zeros((rows * 10, 8 * classes), chunks=(10, 8))
    labels: Any = np.zeros(rows * 10, np.int64)
    labels = labels if labels_are == "numpy" else da.from_array(labels, chunks=37)
    options: dict[str, Any] = {"weight": np.ones(8 * classes), "sample_weight": np.ones(rows * 10)}
    for given in ({}, options, options | {"reduction": "none"}):
        results = lazy.cross_entropy_with_grad(logits, labels, **given)
        assert len(dict(dask.optimize(results)[0][0].__dask_graph__())) <= 12 * blocks


def test_tasks_have_names_that_tell_what_they_are() -> None:
    logits, labels = da.zeros((80, 8), chunks=(4, 4)), da.zeros(80, chunks=4, dtype=int)
    for x in (logits, logits.rechunk((4, 8))):
        for result in lazy.cross_entropy_with_grad(x, labels, sample_weight=da.ones(80, chunks=4)):
            own = set(result.dask.layers) - set(x.dask.layers) - set(labels.dask.layers)
            names = {dask.utils.key_split(name) for name in own}
            assert {"fastce-loss", "fastce-loss-partial"} <= names or {"fastce-grad", "fastce-denominator"} <= names
            assert {name for name in names if not name.startswith("fastce-")} <= {"ones_like", "ones"}


@pytest.mark.parametrize("chunks", [(10, 24), (10, 6)], ids=str)
def test_a_task_uses_one_thread_unless_it_is_told(chunks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    modules = (_dask_tasks, _dask_tasks._merging)
    for module, name in [(m, n) for m in modules for n in ("cross_entropy", "cross_entropy_with_grad") if n in vars(m)]:
        function = getattr(fastce, name)

        def spy(*arguments: Any, function: Any = function, **options: Any) -> Any:
            seen.append(options["num_threads"])
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, spy)
    x, labels = example(np.float32, "labels")
    logits = da.from_array(x, chunks=chunks)
    dask.compute(lazy.cross_entropy_with_grad(logits, labels))
    assert set(seen) == {1}
    seen.clear()
    dask.compute(lazy.cross_entropy_with_grad(logits, labels, num_threads=2), lazy.cross_entropy(logits, labels))
    assert set(seen) == {1, 2}


@pytest.mark.parametrize("classes", [24, 6])
def test_rows_in_chunks_of_unknown_sizes(classes: int) -> None:
    x, labels = example(np.float32, "labels")
    keep = np.arange(ROWS) % 3 > 0
    kept = da.from_array(keep, chunks=10)
    logits = da.from_array(x, chunks=(10, classes))[kept]
    targets, weights = (da.from_array(a, chunks=10)[kept] for a in (labels, SAMPLE_WEIGHT))
    assert np.isnan(logits.shape[0])
    for options in ({}, {"sample_weight": weights}, {"ignore_index": -100, "reduction": "none"}):
        loss, grad = lazy.cross_entropy_with_grad(logits, targets, **options)
        assert grad.numblocks == logits.numblocks
        given = {**options, **({"sample_weight": SAMPLE_WEIGHT[keep]} if "sample_weight" in options else {})}
        want, wanted_grad = fastce.cross_entropy_with_grad(x[keep], labels[keep], **given)
        got, got_grad = dask.compute(loss, grad)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        np.testing.assert_allclose(got_grad, wanted_grad, rtol=1e-5, atol=1e-8)
    c = fastce.softmax(np.nan_to_num(x))
    probabilities = da.from_array(c, chunks=(10, classes))[kept]
    got = lazy.cross_entropy(da.nan_to_num(logits), probabilities).compute()
    np.testing.assert_allclose(got, fastce.cross_entropy(np.nan_to_num(x)[keep], c[keep]), rtol=1e-6)
    np.testing.assert_array_equal(lazy.predict(logits).compute(), fastce.predict(x[keep]))
    assert lazy.evaluate(logits, targets).compute().rows == (labels[keep] >= 0).sum()
    with pytest.raises(ValueError, match="targets is not a dask array, but logits has chunks of unknown sizes"):
        lazy.cross_entropy(logits, labels[keep])
    with pytest.raises(ValueError, match="targets is in .* chunks and logits in .*unknown"):
        lazy.cross_entropy(logits, da.from_array(labels[keep], chunks=20))
    with pytest.raises(ValueError, match="unknown sizes along the classes"):
        lazy.cross_entropy(logits.T, targets)


def test_an_upstream_that_is_computed() -> None:
    x, labels = example(np.float64, "labels", False)
    for chunks in ((10, 24), (10, 6)):
        logits = da.from_array(x, chunks=chunks)
        upstream = lazy.cross_entropy(logits, labels)
        _, grad = lazy.cross_entropy_with_grad(logits, labels, upstream=upstream)
        want = fastce.cross_entropy_grad(x, labels, upstream=fastce.cross_entropy(x, labels))
        np.testing.assert_allclose(grad.compute(), want, rtol=1e-12, atol=1e-17)
        by_row = da.from_array(SAMPLE_WEIGHT, chunks=7)
        _, grad = lazy.cross_entropy_with_grad(logits, labels, reduction="none", upstream=by_row)
        want = fastce.cross_entropy_grad(x, labels, reduction="none", upstream=SAMPLE_WEIGHT)
        np.testing.assert_allclose(grad.compute(), want, rtol=1e-12, atol=1e-17)


# --- errors -----------------------------------------------------------------------------------------------------------

X = da.zeros((6, 4), chunks=(3, 2))
LABELS = np.zeros(6, np.int64)
WRONG_CALLS: dict[str, tuple[Any, type[Exception], str]] = {
    "logits of NumPy": (lambda: lazy.cross_entropy(np.zeros((6, 4)), LABELS), TypeError, "logits is ndarray, expected"),
    "softmax of NumPy": (lambda: lazy.softmax(np.zeros((6, 4))), TypeError, "x is ndarray, expected a dask array"),
    "masked": (lambda: lazy.cross_entropy(da.ma.masked_equal(X, 1), LABELS), TypeError, "blocks of MaskedArray"),
    "complex": (lambda: lazy.cross_entropy(X + 0j, LABELS), TypeError, "dtype complex128"),
    "no classes": (lambda: lazy.cross_entropy(da.zeros((6, 0)), LABELS), ValueError, "no classes"),
    "scalar": (lambda: lazy.logsumexp(da.zeros(())), ValueError, r"x has shape \(\)"),
    "axis": (lambda: lazy.cross_entropy(X, LABELS, axis=2), ValueError, "axis is 2, out of range"),
    "axes": (lambda: lazy.softmax(X, axis=(0, 1)), TypeError, r"axis is \(0, 1\), expected an int"),
    "labels are floats": (lambda: lazy.cross_entropy(X, LABELS * 1.0), TypeError, "targets has dtype float64"),
    "labels of dask are floats": (lambda: lazy.cross_entropy(X, X[:, 0]), TypeError, "targets has dtype float64"),
    "labels are too many": (lambda: lazy.cross_entropy(X, np.zeros(7, int)), ValueError, r"shape \(7,\), expected \(6"),
    "probabilities": (lambda: lazy.cross_entropy(X, X[:, :3]), ValueError, r"shape \(6, 3\), expected \(6,\)"),
    "labels": (lambda: lazy.evaluate(X, X), ValueError, r"labels has shape \(6, 4\), expected \(6,\)"),
    "weight": (lambda: lazy.cross_entropy(X, LABELS, weight=np.ones(5)), ValueError, r"weight has shape \(5,\)"),
    "weight < 0": (lambda: lazy.cross_entropy(X, LABELS, weight=-np.ones(4)), ValueError, r"weight\[0\] is -1"),
    "sample_weight": (lambda: lazy.cross_entropy(X, LABELS, sample_weight=X), ValueError, "sample_weight has shape"),
    "upstream": (
        lambda: lazy.cross_entropy_with_grad(X, LABELS, reduction="none", upstream=np.ones(5)),
        ValueError,
        r"upstream has shape \(5,\), expected a scalar or \(6,\)",
    ),
    "upstream of a mean": (
        lambda: lazy.cross_entropy_with_grad(X, LABELS, upstream=np.ones(6)),
        ValueError,
        "upstream has shape",
    ),
    "lazy upstream of a mean": (
        lambda: lazy.cross_entropy_with_grad(X, LABELS, upstream=da.ones(6)),
        ValueError,
        "upstream has shape",
    ),
    "reduction": (lambda: lazy.cross_entropy(X, LABELS, reduction="avg"), ValueError, "reduction is 'avg'"),
    "normalizer": (lambda: lazy.cross_entropy(X, LABELS, normalizer=0.0), ValueError, "normalizer is 0.0"),
    "lazy normalizer": (lambda: lazy.cross_entropy(X, LABELS, normalizer=X.sum()), TypeError, "normalizer is a dask"),
    "temperature": (lambda: lazy.softmax(X, temperature=-1), ValueError, "temperature is -1"),
    "num_threads": (lambda: lazy.cross_entropy(X, LABELS, num_threads=0), ValueError, "num_threads is 0"),
    "top_k": (lambda: lazy.evaluate(X, LABELS, top_k=0), ValueError, "top_k is 0"),
    "option": (lambda: lazy.cross_entropy(X, LABELS, return_stats=True), TypeError, "return_stats"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_errors_while_building(name: str) -> None:
    call, error, message = WRONG_CALLS[name]

    def scheduler(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("something is computed")

    with dask.config.set(scheduler=scheduler), pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("chunks", [(10, 24), (10, 6)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_errors_of_numbers_name_their_place_in_the_whole_array(reduction: str, chunks: Any) -> None:
    x, labels = example(np.float32, "labels", False)
    logits = da.from_array(x, chunks=chunks)
    labels[37] = 24
    weights = np.ones(ROWS)
    weights[41] = -1
    calls: list[tuple[Any, ...]] = [(labels, None, IndexError), (np.zeros(ROWS, int), weights, ValueError)]
    for targets, sample_weight, error in calls:
        options = {"sample_weight": sample_weight, "reduction": reduction}
        with pytest.raises(error) as theirs:
            fastce.cross_entropy(x, targets, **options)
        loss, grad = lazy.cross_entropy_with_grad(logits, targets, **options)
        for result in (loss, grad, lazy.cross_entropy(logits, targets, **options)):
            with pytest.raises(error) as mine:
                result.compute()
            assert str(mine.value) == str(theirs.value)
    with pytest.raises(IndexError, match=r"labels\[37\] is 24|targets\[37\] is 24"):
        lazy.evaluate(logits, labels).compute()


def test_errors_in_blocks_of_unknown_sizes_name_the_block() -> None:
    kept = da.from_array(np.arange(6) != 1, chunks=3)
    targets = da.from_array(np.array([0, 0, 0, 0, 9, 0]), chunks=3)[kept]
    with pytest.raises(IndexError, match=r"targets\[1\] is 9, out of range .*in the block \(1,\) of the rows"):
        lazy.cross_entropy(X.rechunk((3, 4))[kept], targets).compute()


# --- other processes, and more than fits in memory --------------------------------------------------------------------


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    with (
        dask.config.set({"distributed.worker.memory.pause": 0.9, "distributed.comm.timeouts.connect": "60s"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, memory_limit="400MB", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


LARGE = (65536, 2048)  # 512 MiB of float32, more than a worker may have


def block_of(start: int, stop: int) -> np.ndarray:
    """Rows that are cheap to make and to compress."""
    row = np.linspace(-4, 4, LARGE[1], dtype=np.float32)
    return np.stack([np.roll(row, 31 * (k % 64)) for k in range(start, stop)])


@pytest.fixture(params=["zarr", "memory map"])
def large(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A dask array of a store that is larger than the memory of a worker."""
    rows = 2048
    if request.param == "zarr":
        zarr = pytest.importorskip("zarr", reason="zarr is not installed")
        store = zarr.open(str(tmp_path / "logits.zarr"), mode="w", shape=LARGE, chunks=(rows, LARGE[1]), dtype="f4")
        for start in range(0, LARGE[0], rows):
            store[start : start + rows] = block_of(start, start + rows)
        return da.from_zarr(str(tmp_path / "logits.zarr"))
    path = str(tmp_path / "logits.npy")
    array = np.lib.format.open_memmap(path, "w+", np.float32, LARGE)
    for start in range(0, LARGE[0], rows):
        array[start : start + rows] = block_of(start, start + rows)
    del array

    def read(block_info: Any = None) -> Any:  # each task opens the file: a memory map would be sent with the graph
        (start, stop), _ = block_info[None]["array-location"]
        return np.load(path, mmap_mode="r")[start:stop]

    chunks = ((rows,) * (LARGE[0] // rows), (LARGE[1],))
    return da.map_blocks(read, chunks=chunks, dtype=np.float32, meta=np.empty((0, 0), np.float32))


@pytest.mark.slow
def test_more_than_the_memory_of_a_worker(client: Any, large: Any) -> None:
    labels = np.arange(LARGE[0]) * 7 % LARGE[1]
    labels[::5] = -100
    loss, grad = lazy.cross_entropy_with_grad(large, labels)
    got, sums = client.gather(client.compute([loss, grad.sum(axis=0)]))
    counted = labels >= 0
    want, wanted = 0.0, np.zeros(LARGE[1])
    for start in range(0, LARGE[0], 4096):
        part = slice(start, start + 4096)
        value, block = fastce.cross_entropy_with_grad(
            block_of(part.start, part.stop), labels[part], normalizer=counted.sum()
        )
        want += float(value)
        wanted += block.sum(axis=0, dtype=np.float64)
    assert got == pytest.approx(want, rel=1e-6)
    np.testing.assert_allclose(sums, wanted, rtol=1e-3, atol=1e-8)
    in_columns = large.rechunk((2048, 512))
    assert lazy.cross_entropy(in_columns, labels).compute() == pytest.approx(want, rel=1e-6)


def test_results_from_processes_are_those_of_this_one(client: Any) -> None:
    x, labels = example(np.float32, "labels")
    for chunks in ((10, 24), (10, 6)):
        logits = da.from_array(x, chunks=chunks)
        loss, grad = lazy.cross_entropy_with_grad(logits, labels, weight=WEIGHT, sample_weight=SAMPLE_WEIGHT)
        here = dask.compute(loss, grad, scheduler="synchronous")
        there = client.gather(client.compute([loss, grad]))
        for mine, theirs in zip(here, there, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        evaluation = client.compute(lazy.evaluate(logits, labels)).result()
        assert evaluation.hits == fastce.evaluate(x, labels).hits
    wrong = client.compute(lazy.cross_entropy(logits, np.full(ROWS, 24)))
    with pytest.raises(IndexError, match=r"targets\[\d+\] is 24"):
        wrong.result()
