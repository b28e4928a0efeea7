"""States of blocks of classes: merged, they give the loss and the gradient of the whole rows."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np
import pytest

import fastce
from fastce import _merging
from fastce._merging import (
    Block,
    BlockStats,
    block_grad,
    block_log_softmax,
    block_softmax,
    block_stats,
    counted_rows,
    losses_of_stats,
    lse_of_stats,
    merge_stats,
    no_classes,
    row_shares,
)

ROWS, CLASSES = 40, 23
CUTS = {"one": [0, 23], "two": [0, 9, 23], "uneven": [0, 1, 2, 20, 22, 23], "empty parts": [0, 0, 7, 7, 23, 23]}
ULPS = 10  # of a block's loss, which is rounded to the dtype of the logits, of its state and of the result

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight": {"weight": np.linspace(0, 2, CLASSES)},
    "smoothing": {"label_smoothing": 0.1},
    "only smoothing": {"label_smoothing": 1.0, "weight": np.linspace(0.5, 2, CLASSES)},
    "all": {"label_smoothing": 0.2, "weight": np.linspace(0, 2, CLASSES), "z_loss": 0.01, "temperature": 2.5},
    "z_loss": {"z_loss": 0.01},
    "temperature": {"temperature": 0.3},
    "softcap": {"softcap": 4.0, "label_smoothing": 0.1, "z_loss": 0.01},
}


def parts(cuts: list[int]) -> list[slice]:
    return [slice(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]


def in_blocks(x: Any, targets: Any, cuts: list[int], scale: Any = None, **options: Any) -> tuple[Any, Any, BlockStats]:
    """Losses and gradient of rows by merged states; the classes are last."""
    options = dict(options)
    z_loss, weight = options.pop("z_loss", 0.0), options.pop("weight", None)
    subnormals = options.pop("subnormals", "keep")
    temperature = options.get("temperature", 1.0)
    blocks, columns = [], []
    for part in parts(cuts):
        of_block = None if weight is None else weight[part]
        blocks.append(Block(part.start, x.shape[-1], of_block, **options))
        columns.append((x[..., part], targets if targets.ndim < x.ndim else targets[..., part]))
    states = [block_stats(*column, block) for column, block in zip(columns, blocks, strict=True)]
    merged = reduce(lambda a, b: merge_stats(a, b, temperature), states)
    shape = x.shape[:-1]
    if targets.ndim < x.ndim:
        counted = counted_rows(targets, x.shape[-1], options.get("ignore_index", -100))
    else:
        counted = np.ones(shape, bool)
    losses = np.where(counted, losses_of_stats(merged, z_loss, temperature), 0)
    scale = np.ones(shape) if scale is None else scale
    grads = [
        block_grad(*column, merged, block, scale, counted, z_loss, subnormals)
        for column, block in zip(columns, blocks, strict=True)
        if column[0].shape[-1]
    ]
    return losses, np.concatenate(grads, axis=-1), merged


def logits_of(dtype: Any, size: float = 3.0) -> Any:
    rng = np.random.default_rng(5)
    x = size * rng.standard_normal((ROWS, CLASSES))
    x[:10, 3] += np.linspace(1, 40, 10)  # confident
    x[10:14] += 1000
    x[14] = 1  # ties
    return x.astype(dtype)


def close(got: Any, want: Any, dtype: Any, size: Any, ulps: float = ULPS) -> None:
    eps = np.finfo(dtype).eps
    both_nan = np.isnan(got) & np.isnan(want)
    with np.errstate(all="ignore"):
        fine = both_nan | (got == want) | (np.abs(got - want) <= ulps * eps * size)
    assert fine.all(), (got[~fine], want[~fine])


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_blocks_have_the_loss_and_gradient_of_the_whole_rows(kind: str, dtype: Any, name: str, cuts: Any) -> None:
    x, options = logits_of(dtype), OPTIONS[name]
    rng = np.random.default_rng(6)
    if kind == "labels":
        targets = rng.integers(0, CLASSES, ROWS)
        targets[:8] = 3
        targets[20] = -100
        x[20, 5] = np.nan
    else:
        targets = rng.random((ROWS, CLASSES)).astype(dtype)
        targets[:8] = np.eye(CLASSES, dtype=dtype)[3]
    scale = rng.random(ROWS)
    want, grad = fastce.cross_entropy_with_grad(x, targets, reduction="none", upstream=scale, **options)
    got, got_grad, merged = in_blocks(x, targets, cuts, scale, **options)
    capped = 4.0 * np.tanh(x / 4.0) if "softcap" in options else x
    spread = np.nan_to_num((capped.max(axis=1) - capped.min(axis=1)) / options.get("temperature", 1))
    terms = 0.0
    if "z_loss" in options:  # a square, of which the rounding of lse makes twice as much
        lse = np.nan_to_num(fastce.logsumexp(x.astype(np.float64)))
        terms = 4 * options["z_loss"] * lse**2
    # The tail of a confident row contains the error of exp, which grows with the distance from the maximum.
    close(got, want, dtype, np.abs(want) * (1 + spread / 4) + terms)
    mass = np.nan_to_num(merged.mass) + 2 * options.get("z_loss", 0) * np.abs(np.nan_to_num(lse_of_stats(merged)))
    p = np.nan_to_num(fastce.softmax(x, temperature=options.get("temperature", 1), softcap=options.get("softcap")))
    size = scale[:, None] * (mass[:, None] * p) / options.get("temperature", 1)
    close(got_grad, grad, dtype, (np.abs(grad) + size) * (1 + spread[:, None] / 4))
    assert got_grad.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_and_gradient_of_a_confident_row_keep_their_digits(dtype: Any) -> None:
    x = np.zeros((1, 8), dtype)
    x[0, 2] = 60
    labels = np.array([2])
    want, grad = fastce.cross_entropy_with_grad(x, labels, reduction="none")
    assert 0 < want[0] < 1e-24
    got, got_grad, _ = in_blocks(x, labels, [0, 3, 8])
    np.testing.assert_allclose(got, want, rtol=64 * np.finfo(dtype).eps)
    np.testing.assert_allclose(got_grad, grad, rtol=64 * np.finfo(dtype).eps)


def states(size: int = 500) -> list[BlockStats]:
    rng = np.random.default_rng(7)
    special = [-np.inf, np.inf, np.nan, 0.0, 1.0, 1.0, -3.5]
    made = []
    for _ in range(3):
        row_max = np.where(rng.random(size) < 0.6, rng.choice(special, size), rng.standard_normal(size))
        tail = np.where(row_max == -np.inf, -1.0, rng.choice([0.0, 0.5, 0.5, np.nan, 7.25], size))
        tail = np.where(np.isposinf(row_max) | np.isnan(row_max), np.nan, tail)
        mass = rng.choice([0.0, 0.0, 0.5, 0.3], size)
        linear = np.where(mass == 0, 0.0, np.where(row_max == -np.inf, np.inf, rng.random(size)))
        made.append(BlockStats(row_max, tail, mass, linear))
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_merging_is_commutative_to_the_bit_and_has_an_identity(temperature: float) -> None:
    a, b, c = states()
    for x, y in ((a, b), (b, c), (a, a)):
        one, other = merge_stats(x, y, temperature), merge_stats(y, x, temperature)
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right)
    nothing = no_classes(a.row_max.shape)
    for merged in (merge_stats(a, nothing, temperature), merge_stats(nothing, a, temperature)):
        for left, right in zip(merged, a, strict=True):
            np.testing.assert_array_equal(left, right)


def test_merging_is_associative_to_rounding() -> None:
    a, b, c = states()
    one, other = merge_stats(merge_stats(a, b), c), merge_stats(a, merge_stats(b, c))
    np.testing.assert_allclose(one.tail, other.tail, rtol=1e-14)
    rows = ~np.isnan(one.tail)  # the others have no loss
    assert rows.sum() > 50
    for left, right in zip(one, other, strict=True):
        np.testing.assert_allclose(left[rows], right[rows], rtol=1e-14)


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"softcap": 2.0}], ids=str)
def test_rows_that_hold_anything(cuts: Any, options: dict[str, Any]) -> None:
    x = np.random.default_rng(8).standard_normal((9, CLASSES))
    i, nan = np.inf, np.nan
    x[0, :12] = -i  # a block of nothing but masked classes
    x[1, 12:] = -i
    x[2] = -i
    x[3, 11] = nan
    x[4, 11] = i
    x[5, [2, 20]] = i, nan
    x[6] = -i
    x[6, 4] = nan
    x[7, :22] = -i
    x[8] = nan
    for label in (0, 5, 22):
        labels = np.full(9, label)
        want, grad = fastce.cross_entropy_with_grad(x, labels, reduction="none", **options)
        got, got_grad, merged = in_blocks(x, labels, cuts, **options)
        np.testing.assert_allclose(got, want, rtol=1e-14)
        np.testing.assert_allclose(got_grad, grad, rtol=1e-13, atol=1e-15)
        softcap = {key: value for key, value in options.items() if key == "softcap"}
        np.testing.assert_allclose(lse_of_stats(merged), fastce.logsumexp(x, **softcap), rtol=1e-14)
        blocks = [Block(p.start, CLASSES, **softcap) for p in parts(cuts)]
        for mine, theirs in ((block_softmax, fastce.softmax), (block_log_softmax, fastce.log_softmax)):
            found = [mine(x[:, p], merged, b) for p, b in zip(parts(cuts), blocks, strict=True) if p.start < p.stop]
            np.testing.assert_allclose(np.concatenate(found, axis=1), theirs(x, **softcap), rtol=1e-13, atol=1e-300)


def test_a_probability_of_0_on_a_masked_class_adds_nothing_and_a_larger_one_is_infinite() -> None:
    x, c = np.zeros((2, 6)), np.full((2, 6), 0.25)
    x[:, 3:5] = -np.inf
    c[:, 3:5] = [[0, 0], [0, 0.5]]
    want = fastce.cross_entropy(x, c, reduction="none")
    assert np.isfinite(want[0])
    assert want[1] == np.inf
    for cuts in ([0, 3, 6], [0, 4, 6], [0, 3, 5, 6]):
        np.testing.assert_allclose(in_blocks(x, c, cuts)[0], want, rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint64, np.int64])
def test_labels_of_any_integer_dtype(dtype: Any) -> None:
    x = np.random.default_rng(9).standard_normal((5, 300))
    labels = np.array([0, 1, 99, 127, 64]).astype(dtype)
    got, grad, _ = in_blocks(x, labels, [0, 65, 290, 300])
    want, wanted_grad = fastce.cross_entropy_with_grad(x, labels, reduction="none")
    np.testing.assert_allclose(got, want, rtol=1e-15)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-13)


def test_labels_out_of_range_are_refused_as_fastce_refuses_them() -> None:
    labels = np.array([0, 23, -100])
    with pytest.raises(IndexError) as theirs:
        fastce.cross_entropy(np.zeros((3, CLASSES)), labels)
    with pytest.raises(IndexError) as mine:
        counted_rows(labels, CLASSES, -100)
    assert str(mine.value) == str(theirs.value)
    assert counted_rows(labels, 24, -100, [1, 0, 1]).tolist() == [True, False, False]


@pytest.mark.parametrize("wider", [True, False])
def test_shares_of_blocks_add_up_to_the_denominator(wider: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, so that gradients of blocks are those of the whole array."""
    if not wider:
        monkeypatch.setattr(_merging, "WIDER", False)
    rng = np.random.default_rng(15)
    rows = 5003
    labels, sample_weight, weight = rng.integers(0, 7, rows), rng.random(rows), rng.random(7)
    labels[::9] = -1
    x = np.zeros((rows, 7))
    for w, sw in ((weight, None), (None, sample_weight), (weight, sample_weight), (None, None)):
        blocks = [slice(k, k + 619) for k in range(0, rows, 619)]
        shares = [row_shares(labels[b], 7, -1, w, None if sw is None else sw[b]) for b in blocks]
        denominator = math.fsum(np.ravel(shares))
        options: dict[str, Any] = {"weight": w, "sample_weight": sw, "ignore_index": -1}
        grad = fastce.cross_entropy_grad(x, labels, normalizer=denominator, **options)
        np.testing.assert_array_equal(grad, fastce.cross_entropy_grad(x, labels, **options))


@pytest.mark.parametrize("axis", [0, 1, 2, -3])
def test_the_classes_are_on_any_axis(axis: int) -> None:
    rng = np.random.default_rng(10)
    x = np.moveaxis(rng.standard_normal((4, 5, 12)), -1, axis)
    labels = rng.integers(0, 12, (4, 5))
    options: dict[str, Any] = {"label_smoothing": 0.1, "axis": axis}
    halves = np.split(x, [7], axis=axis)
    blocks = [Block(0, 12, **options), Block(7, 12, **options)]
    merged = merge_stats(*(block_stats(half, labels, block) for half, block in zip(halves, blocks, strict=True)))
    want, grad = fastce.cross_entropy_with_grad(x, labels, reduction="none", **options)
    np.testing.assert_allclose(losses_of_stats(merged), want, rtol=1e-14)
    one, counted = np.ones((4, 5)), np.ones((4, 5), bool)
    found = [block_grad(h, labels, merged, b, one, counted) for h, b in zip(halves, blocks, strict=True)]
    np.testing.assert_allclose(np.concatenate(found, axis=axis), grad, rtol=1e-13, atol=1e-16)  # p - q cancels


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=str)
def test_half_precision_and_integers(options: dict[str, Any]) -> None:
    labels = np.random.default_rng(11).integers(0, CLASSES, ROWS)
    for x in (logits_of(np.float16), logits_of(np.float64).astype(np.int16)):
        want, grad = fastce.cross_entropy_with_grad(x, labels, reduction="none", **options)
        got, got_grad, _ = in_blocks(x, labels, [0, 9, 23], **options)
        assert got_grad.dtype == grad.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5)
        np.testing.assert_allclose(got_grad.astype(float), grad.astype(float), rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=str)
def test_subnormals_are_flushed(options: dict[str, Any]) -> None:
    x = np.zeros((2, 8), np.float32)
    x[:, 1::2] = -80
    labels = np.array([0, 1])
    _, grad, _ = in_blocks(x, labels, [0, 3, 8], **options, subnormals="flush")
    want = fastce.cross_entropy_grad(x, labels, reduction="none", subnormals="flush", **options)
    assert (np.count_nonzero(want) < want.size) == (not options)
    np.testing.assert_array_equal(grad == 0, want == 0)
