"""What `stats` and class indices may be: read-only arrays, labels that int64 does not hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastce

X = np.random.default_rng(0).standard_normal((4, 3))
LABELS = np.array([0, 2, 1, 2])


@pytest.mark.parametrize("which", [[0], [1], [0, 1]], ids=["row_max", "tail", "both"])
def test_stats_may_be_read_only(which: list[int]) -> None:
    stats = fastce.cross_entropy(X, LABELS, return_stats=True)[1]
    want = fastce.cross_entropy_grad(X, LABELS, stats=stats)
    for k in which:
        stats[k].flags.writeable = False
    np.testing.assert_array_equal(fastce.cross_entropy_grad(X, LABELS, stats=stats), want)


@pytest.mark.parametrize("package", [fastce, fastce.reference], ids=["fastce", "reference"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "axis"), [((70, 3), 1), ((70, 16), 1), ((16, 70), 0), ((5, 2000), 1), ((2, 300_000), 1)]
)
def test_a_row_of_nothing_but_minus_infinity_has_the_stats_of_no_classes(
    shape: tuple[int, int], axis: int, dtype: type, package: Any
) -> None:
    """So it changes no row that it is merged with. NaN in the row is not lost, in place either."""
    x = np.moveaxis(np.random.default_rng(6).standard_normal(shape), axis, 1).astype(dtype)
    x[0] = -np.inf
    x[1, :-1], x[1, -1] = -np.inf, np.nan
    labels, x = np.zeros(len(x), int), np.ascontiguousarray(np.moveaxis(x, 1, axis))
    _, grad, want = package.cross_entropy_with_grad(x, labels, axis=axis, return_stats=True)
    assert (want.row_max[0], want.tail[0]) == (-np.inf, -1)
    assert np.isnan(want.tail[1]) and (want.tail[2:] >= 0).all()
    loss, stats = package.cross_entropy(x, labels, axis=axis, return_stats=True, reduction="none")
    assert np.isnan(loss[:2]).all()
    from_stats = package.cross_entropy_grad(x, labels, axis=axis, stats=stats)
    assert np.isnan(np.moveaxis(grad, axis, 1)[:2]).all() and np.isnan(np.moveaxis(from_stats, axis, 1)[:2]).all()
    in_place = x.copy()
    of_place = package.cross_entropy_with_grad(in_place, labels, axis=axis, return_stats=True, out=in_place)[2]
    for got in (stats, of_place):
        for part, wanted in zip(got, want, strict=True):
            np.testing.assert_array_equal(part, wanted)


STATS_OPTIONS = {
    "labels": {},
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "weight, smoothing": {"weight": True, "label_smoothing": 0.1},
    "z_loss": {"weight": True, "label_smoothing": 0.1, "z_loss": 1e-3},
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "axis"), [((230, 3), 1), ((230, 10), 1), ((10, 230), 0), ((400, 130), 0), ((5, 200), 1)]
)
@pytest.mark.parametrize("options", STATS_OPTIONS.values(), ids=STATS_OPTIONS)
def test_gradient_from_stats(options: dict[str, Any], shape: tuple[int, int], axis: int, dtype: type) -> None:
    """It is that of the fused call, also where a row has a single large logit. Ignored rows need no stats."""
    rng = np.random.default_rng(5)
    classes, rows = shape[axis], shape[1 - axis]
    x = np.moveaxis((20 * rng.standard_normal(shape)).astype(dtype), axis, 1)
    labels = rng.integers(0, classes, rows)
    x[np.arange(rows), rng.integers(0, classes, rows)] += 30
    labels[::7] = -100
    if "weight" in options:
        options = options | {"weight": rng.random(classes) * 10.0 ** rng.integers(-5, 2, classes)}
    x = np.ascontiguousarray(np.moveaxis(x, 1, axis))
    _, stats = fastce.cross_entropy(x, labels, axis=axis, return_stats=True, **options)
    _, want = fastce.cross_entropy_with_grad(x, labels, axis=axis, **options)
    got = fastce.cross_entropy_grad(x, labels, axis=axis, stats=stats, **options)
    np.testing.assert_allclose(got, want, rtol=200 * np.finfo(dtype).eps, atol=np.finfo(dtype).tiny)
    for rubbish in (0, -3e4, np.inf, np.nan):
        for array in stats:
            array[labels < 0] = rubbish
        again = fastce.cross_entropy_grad(x, labels, axis=axis, stats=stats, **options)
        np.testing.assert_array_equal(again, got)
        assert (np.moveaxis(again, axis, 1)[labels < 0] == 0).all()


@pytest.mark.parametrize(
    ("labels", "ignore_index"),
    [
        ([0, 2**63 + 5], 2**63 - 1),
        ([0, 2**64 - 1], -1),
        ([0, 2**64 - 100], -100),
        ([2**63 + 1, 2**63 + 2], 2**63 + 1),
        ([0, 2**63 + 1], 2**64),
        ([0, 2**63 + 1], None),
    ],
)
def test_a_label_that_int64_does_not_hold_is_an_error(labels: list[int], ignore_index: int | None) -> None:
    out = np.full((2, 3), 7.0)
    with pytest.raises(IndexError, match=rf"^targets\[{labels.index(max(labels))}\] is {max(labels)}, out of range"):
        fastce.cross_entropy_with_grad(X[:2], np.array(labels, np.uint64), ignore_index=ignore_index, out=out)
    assert (out == 7).all()


def test_a_label_that_int64_does_not_hold_can_be_ignored() -> None:
    labels = np.array([2**63 + 1, 1], np.uint64)
    got = fastce.cross_entropy(X[:2], labels, ignore_index=2**63 + 1, reduction="none")
    np.testing.assert_array_equal(got, [0, fastce.cross_entropy(X[1], 1)])


def test_integers_are_predicted_as_they_are() -> None:
    """float64 cannot tell these apart."""
    close = [[2**53, 2**53 + 1]]
    assert fastce.predict(close) == 1
    assert fastce.predict(np.array(close)) == 1


@pytest.mark.parametrize("classes", [3, 70, 5000, 40_000])
@pytest.mark.parametrize("order", ["C", "F"])
def test_stats_with_the_gradient_are_those_of_the_forward(order: str, classes: int) -> None:
    """In place too, where the logits are overwritten."""
    x = np.array(np.random.default_rng(0).normal(size=(6, classes)), order=order)  # type: ignore[call-overload]
    labels = np.arange(6) % classes
    for package in (fastce, fastce.reference):
        for options in ({}, {"label_smoothing": 0.1, "temperature": 0.7, "softcap": 3.0}, {"reduction": "none"}):
            want_loss, want = package.cross_entropy(x, labels, return_stats=True, **options)
            _, want_grad = package.cross_entropy_with_grad(x, labels, **options)
            for out in (None, x.copy(order="K")):
                given = x if out is None else out
                loss, grad, stats = package.cross_entropy_with_grad(
                    given, labels, out=out, return_stats=True, **options
                )
                near = 1e-13 if package is fastce.reference else 0  # which adds up the exponentials in another order
                np.testing.assert_allclose(loss, want_loss, rtol=near)
                np.testing.assert_allclose(grad, want_grad, rtol=near, atol=near / 100)
                assert isinstance(stats, package.SoftmaxStats)
                for mine, theirs in zip(stats, want, strict=True):
                    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("classes", [3, 70, 5000, 40_000])
@pytest.mark.parametrize("order", ["C", "F"])
def test_stats_of_ignored_rows_are_those_of_their_logits(order: str, classes: int) -> None:
    x = np.array(np.random.default_rng(0).normal(size=(6, classes)), order=order)  # type: ignore[call-overload]
    labels = np.arange(6) % classes
    some = np.where(np.arange(6) % 2, labels, -100)
    for package in (fastce, fastce.reference):
        want = package.cross_entropy(x, labels, return_stats=True)[1]
        for got in (
            package.cross_entropy(x, some, return_stats=True)[1],
            package.cross_entropy(x, labels, sample_weight=some >= 0, return_stats=True)[1],
            package.cross_entropy_with_grad(x, some, return_stats=True)[2],
        ):
            for mine, theirs in zip(got, want, strict=True):
                np.testing.assert_array_equal(mine, theirs)
