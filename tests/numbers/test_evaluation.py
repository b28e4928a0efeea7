"""evaluate: counts and ranks are exact, sums are those of the other functions, and parts add up to the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from functions import DTYPES, F32, F64, dtypes, numbers

import fastce
from fastce import reference

INF, NAN = math.inf, math.nan
SHAPES = [(1, 1), (50, 3), (300, 10), (60, 57), (40, 300), (9, 4096), (5, 9001)]
MEANS = ("loss", "perplexity", "accuracy", "entropy", "confidence", "calibration_error")


def case(shape: tuple[int, int], dtype: type, axis: int = -1) -> tuple[np.ndarray, np.ndarray]:
    """Logits with many ties, and labels of which some are ignored."""
    rng = np.random.default_rng(shape[0])
    x = rng.normal(size=shape).round(1).astype(dtype)
    labels = np.where(rng.random(shape[0]) < 0.5, x.argmax(1), rng.integers(shape[1], size=shape[0]))
    labels[3::7] = -100
    return np.ascontiguousarray(x if axis == -1 else x.T), labels


def ranks_of(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """By sorting: the label's place among the classes, those with the same logit by their number."""
    order = np.argsort(-x, axis=1, kind="stable")
    return np.where(labels < 0, -1, (order == np.maximum(labels, 0)[:, None]).argmax(1))


@dtypes
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_of_each_row(shape: tuple[int, int], axis: int, dtype: type) -> None:
    x, labels = case(shape, dtype, axis)
    for options in ({}, {"temperature": 2.0}, {"softcap": 1.5}):
        got = fastce.evaluate(x, labels, axis=axis, **options, return_rows=True)[1]
        by_row = x if axis == -1 else x.T
        if "softcap" in options:
            by_row = fastce.logsumexp(by_row[..., None], softcap=1.5)  # one class: the capped logit
        kept = labels >= 0
        np.testing.assert_array_equal(got.rank, ranks_of(by_row, labels))
        np.testing.assert_array_equal(got.predicted, np.where(kept, by_row.argmax(1), -1))
        z = by_row / dtype(options.get("temperature", 1))
        loss = fastce.cross_entropy(z, labels, reduction="none")
        for name, want in {
            "log_probability": -loss,
            "entropy": np.where(kept, fastce.entropy(z, reduction="none"), 0),
            "confidence": np.where(kept, fastce.softmax(z).max(1), 0),
        }.items():
            assert getattr(got, name).dtype == dtype
            np.testing.assert_allclose(getattr(got, name), want, rtol=30 * np.finfo(dtype).eps, err_msg=name)


@dtypes
@pytest.mark.parametrize("shape", SHAPES)
def test_means_are_those_of_the_reference(shape: tuple[int, int], dtype: type) -> None:
    x, labels = case(shape, dtype)
    for options in (
        {},
        {"temperature": 0.5},
        {"softcap": 1.5},
        {"top_k": (2, 3, 10**6)},
        {"ignore_index": None},
        {"top_k": 4},
    ):
        given = np.maximum(labels, 0) if "ignore_index" in options else labels
        got, want = fastce.evaluate(x, given, **options), reference.evaluate(x, given, **options)
        assert (got.rows, got.accuracy, got.top_k) == (want.rows, want.accuracy, want.top_k)
        for name in MEANS:
            np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-4, atol=1e-6, err_msg=name)


@dtypes
def test_loss_and_accuracy_are_those_of_other_functions(dtype: type) -> None:
    x, labels = case((300, 10), dtype)
    got = fastce.evaluate(x, labels)
    assert dtype(got.loss) == pytest.approx(fastce.cross_entropy(x, labels), rel=2 * float(np.finfo(dtype).eps))
    assert got.perplexity == math.exp(got.loss)
    kept = labels >= 0
    assert got.accuracy == got.top_k[1] == np.mean((fastce.predict(x) == labels)[kept])
    assert got.rows == np.count_nonzero(kept)


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("width", [4, 100, 5000])
def test_rows_without_probabilities_count_as_wrong(width: int, axis: int) -> None:
    x = np.zeros((6, width))
    x[1, 2], x[2, [1, 3]], x[3] = NAN, INF, -INF
    x[4, 0], x[4, 3] = INF, NAN
    x[5] = NAN  # ignored
    labels = np.array([0, 2, 1, 0, 3, -100])
    given = np.ascontiguousarray(x if axis == -1 else x.T)
    for package in (fastce, reference):
        got, rows = package.evaluate(given, labels, axis=axis, top_k=(1, width, 2 * width), return_rows=True)
        assert got.rows == 5
        assert got.top_k == {1: 0.2, width: 0.2, 2 * width: 0.2} and got.accuracy == 0.2
        for name in set(MEANS) - {"accuracy"}:
            assert math.isnan(getattr(got, name)), name
        np.testing.assert_array_equal(rows.rank, [0, -1, -1, -1, -1, -1])
        np.testing.assert_array_equal(rows.predicted, [0, 2, 1, 0, 3, -1])
        np.testing.assert_array_equal(np.isnan(rows.log_probability), [False, True, True, True, True, False])
        assert rows.log_probability[5] == rows.entropy[5] == rows.confidence[5] == 0


@pytest.mark.parametrize("width", [4, 100, 5000])
def test_a_masked_label_has_a_rank_but_probability_0(width: int) -> None:
    x = np.full((2, width), -INF)
    x[:, 1] = 0
    got, rows = fastce.evaluate(x, [1, 3], top_k=width, return_rows=True)
    np.testing.assert_array_equal(rows.rank, [0, 3])  # after the other masked classes 0 and 2
    assert rows.log_probability.tolist() == [0, -INF] and got.loss == got.perplexity == INF
    assert got.confidence == 1 and got.entropy == 0 and got.calibration_error == 0.5


def test_calibration_error_by_hand() -> None:
    """Two bins: confidence 0.8 with accuracy 1/2, and confidence 0.6 with accuracy 1."""
    x = np.log([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4]])
    got = fastce.evaluate(x, [0, 1, 0])
    assert got.calibration_error == pytest.approx((2 * abs(0.5 - 0.8) + abs(1 - 0.6)) / 3)
    assert got.confidence == pytest.approx((0.8 + 0.8 + 0.6) / 3)
    assert got.bins[0].sum() == 3 and got.bins[1].sum() == 2


@dtypes
def test_parts_add_up_to_the_whole(dtype: type) -> None:
    x, labels = case((300, 17), dtype)
    whole = fastce.evaluate(x, labels)
    parts = [fastce.evaluate(x[at : at + 77], labels[at : at + 77]) for at in range(0, 300, 77)]
    for total in (sum(parts), parts[0] + parts[1] + parts[2] + parts[3], sum(parts[1:], parts[0])):
        assert (total.rows, total.accuracy, total.top_k) == (whole.rows, whole.accuracy, whole.top_k)
        np.testing.assert_array_equal(total.bins[:2], whole.bins[:2])
        for name in MEANS:
            assert getattr(total, name) == pytest.approx(getattr(whole, name), rel=1e-13)
    assert f"rows={whole.rows}, loss=" in repr(whole) and "top_k={1: " in repr(whole)


def test_what_cannot_be_added() -> None:
    x, labels = case((50, 3), F64)
    one = fastce.evaluate(x, labels)
    with pytest.raises(ValueError, match=r"top_k is \(1, 5\) and \(2,\)"):
        one + fastce.evaluate(x, labels, top_k=2)
    for other in (1, 0.0, None, (1, 2)):
        with pytest.raises(TypeError, match="unsupported operand"):
            one + other  # type: ignore[operator]
    with pytest.raises(TypeError, match="unsupported operand"):
        1 + one  # type: ignore[operator]


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_evaluate(rows: int) -> None:
    for package in (fastce, reference):
        got = package.evaluate(np.zeros((rows, 4)), np.full(rows, -100))
        assert got.rows == 0 and math.isnan(got.loss) and math.isnan(got.top_k[5]) and math.isnan(got.calibration_error)
    whole = fastce.evaluate(np.zeros((2, 4)), [1, 2])
    assert repr(whole + fastce.evaluate(np.zeros((0, 4)), np.zeros(0, int))) == repr(whole)


def test_a_vector_of_logits() -> None:
    got, rows = fastce.evaluate([0.5, 2.0, 1.0], 2, return_rows=True)
    assert got.rows == 1 and got.top_k == {1: 0.0, 5: 1.0}
    assert rows.rank == 1 and rows.predicted == 1 and np.ndim(rows.rank) == 0


@pytest.mark.parametrize("shape, axis", [((2, 6, 9, 8), 1), ((3, 4, 5), 0), ((3, 4, 5), -2), ((1, 5000, 3), 1)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_axis_and_order(order: str, shape: tuple[int, ...], axis: int) -> None:
    x = numbers(shape, F32)
    labels = np.random.default_rng(0).integers(shape[axis], size=np.delete(shape, axis))
    last = np.ascontiguousarray(np.moveaxis(x, axis, -1)).reshape(-1, shape[axis])
    want, want_rows = fastce.evaluate(last, labels.ravel(), return_rows=True)
    got, rows = fastce.evaluate(np.array(x, order=order), labels, axis=axis, return_rows=True)
    assert got.top_k == want.top_k
    assert got.calibration_error == pytest.approx(want.calibration_error, rel=1e-5)
    for name in rows._fields:
        assert getattr(rows, name).shape == labels.shape
        np.testing.assert_allclose(getattr(rows, name).ravel(), getattr(want_rows, name), rtol=5e-6, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4000, 10), (7, 9001), (300, 300)])
def test_threads_give_the_same_bits(shape: tuple[int, int], dtype: type) -> None:
    x, labels = case(shape, dtype)
    want, want_rows = fastce.evaluate(x, labels, num_threads=1, return_rows=True)
    for threads in (2, 3):
        got, rows = fastce.evaluate(x, labels, num_threads=threads, return_rows=True)
        assert got.sums == want.sums
        for mine, theirs in zip(rows, want_rows, strict=True):
            np.testing.assert_array_equal(mine, theirs)
