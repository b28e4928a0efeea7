"""The public functions for rows whose classes are in several blocks: what they compute, and what they refuse. The
states themselves are tested in test_merging.py."""

from __future__ import annotations

from functools import partial, reduce
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fastce
from fastce import BlockStats, reference

CLASSES = 23
INF, NAN = np.inf, np.nan


def in_blocks(
    x: Any, targets: Any, cuts: list[int], *, package: ModuleType = fastce, upstream: Any = 1.0, **options: Any
) -> tuple[Any, Any, BlockStats]:
    """Losses, gradient and merged state of rows; the classes are last."""
    of_grad = {name: options.pop(name) for name in ("z_loss", "subnormals") if name in options}
    temperature = options.get("temperature", 1.0)
    states, grads = [], []
    blocks = [slice(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    parts = [(x[..., b], targets if np.ndim(targets) < x.ndim else targets[..., b]) for b in blocks]
    places = [{"class_offset": b.start, "num_classes": x.shape[-1]} for b in blocks]
    for part, place in zip(parts, places, strict=True):
        states.append(package.block_stats(*part, **place, **options))
    merged = reduce(partial(package.merge_stats, temperature=temperature), states)
    for part, place in zip(parts, places, strict=True):
        grads.append(package.grad_from_stats(*part, merged, **place, **options, **of_grad, upstream=upstream))
    of_loss = {name: of_grad[name] for name in ("z_loss",) if name in of_grad}
    of_loss |= {"ignore_index": options["ignore_index"]} if "ignore_index" in options else {}
    loss = package.loss_from_stats(merged, targets, temperature=temperature, **of_loss)
    return loss, np.concatenate(grads, axis=-1), merged


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {
        "label_smoothing": 0.2, "weight": np.linspace(0, 2, CLASSES), "z_loss": 0.01, "temperature": 2.5,
        "softcap": 4.0, "subnormals": "flush",
    },
}  # fmt: skip


@pytest.mark.parametrize("package", [fastce, reference], ids=["fastce", "reference"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_are_those_of_whole_rows(dtype: Any, kind: str, name: str, package: ModuleType) -> None:
    rng = np.random.default_rng(1)
    x = (4 * rng.standard_normal((4, 5, CLASSES))).astype(dtype)
    options, upstream = OPTIONS[name], rng.standard_normal((4, 5))
    if kind == "labels":
        targets = rng.integers(0, CLASSES, (4, 5))
        targets[0, :2] = -1
        x[0, 1, 3] = NAN
        options = options | {"ignore_index": -1}
    else:
        targets = rng.random(x.shape)
    of_whole = {key: value for key, value in options.items() if key != "ignore_index" or kind == "labels"}
    want, grad = fastce.cross_entropy_with_grad(x, targets, reduction="none", upstream=upstream, **of_whole)
    tolerance = {"rtol": 200 * np.finfo(dtype).eps, "atol": 200 * np.finfo(dtype).eps}
    for cuts in ([0, CLASSES], [0, 9, 9, 10, CLASSES]):
        got, got_grad, merged = in_blocks(x, targets, cuts, package=package, upstream=upstream, **options)
        np.testing.assert_allclose(got, want, **tolerance)
        np.testing.assert_allclose(got_grad, grad, **tolerance)
        assert got_grad.dtype == dtype and got.dtype == np.float64
        assert {part.dtype for part in merged} == {np.dtype(np.float64)}
        assert {part.shape for part in merged} == {(4, 5)}


@pytest.mark.parametrize("package", [fastce, reference], ids=["fastce", "reference"])
def test_masked_rows_and_rows_without_numbers(package: ModuleType) -> None:
    x = np.random.default_rng(2).standard_normal((5, CLASSES))
    x[0, :12] = -INF  # a block of nothing but masked classes
    x[1] = -INF
    x[2, 20] = NAN
    x[3, 2] = INF
    labels = np.full(5, 15)
    want, grad = fastce.cross_entropy_with_grad(x, labels, reduction="none")
    got, got_grad, merged = in_blocks(x, labels, [0, 5, 12, CLASSES], package=package)
    np.testing.assert_allclose(got, want, rtol=1e-13)
    np.testing.assert_allclose(got_grad, grad, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(np.isnan(merged.tail), [False, False, True, True, False])
    assert merged.tail[1] == -1


def test_one_row() -> None:
    x, label = np.random.default_rng(3).standard_normal(CLASSES), 4
    got, grad, merged = in_blocks(x, label, [0, 3, 11, CLASSES])
    want, wanted_grad = fastce.cross_entropy_with_grad(x, label)
    np.testing.assert_allclose(got, want, rtol=1e-14)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-13)
    assert np.ndim(got) == 0 and merged.tail.shape == ()


@pytest.mark.parametrize("axis", [0, 1, -3])
def test_the_classes_are_on_any_axis(axis: int) -> None:
    rng = np.random.default_rng(4)
    x, labels = np.moveaxis(rng.standard_normal((4, 5, 12)), -1, axis), rng.integers(0, 12, (4, 5))
    halves, options = np.split(x, [7], axis=axis), {"num_classes": 12, "axis": axis, "label_smoothing": 0.1}
    a, b = (fastce.block_stats(h, labels, class_offset=k, **options) for h, k in zip(halves, (0, 7), strict=True))
    merged = fastce.merge_stats(a, b)
    grads = [
        fastce.grad_from_stats(h, labels, merged, class_offset=k, **options)
        for h, k in zip(halves, (0, 7), strict=True)
    ]
    want, grad = fastce.cross_entropy_with_grad(x, labels, reduction="none", axis=axis, label_smoothing=0.1)
    np.testing.assert_allclose(fastce.loss_from_stats(merged, labels), want, rtol=1e-13)
    np.testing.assert_allclose(np.concatenate(grads, axis=axis), grad, rtol=1e-12, atol=1e-16)


def test_exchanged_blocks_give_the_same_bits() -> None:
    rng = np.random.default_rng(5)
    x, labels = rng.integers(-2, 3, (60, CLASSES)).astype(float), rng.integers(0, CLASSES, 60)
    x[::7, :9] = -INF
    a = fastce.block_stats(x[:, :9], labels, class_offset=0, num_classes=CLASSES, temperature=0.7)
    b = fastce.block_stats(x[:, 9:], labels, class_offset=9, num_classes=CLASSES, temperature=0.7)
    for one, other in zip(
        fastce.merge_stats(a, b, temperature=0.7), fastce.merge_stats(b, a, temperature=0.7), strict=True
    ):
        np.testing.assert_array_equal(one, other)


X, LABELS = np.zeros((2, 3)), np.array([0, 7])
STATS = fastce.block_stats(X, LABELS, class_offset=0, num_classes=9)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"class_offset": -1}, ValueError, r"^class_offset is -1 and logits of shape \(2, 3\) has 3 classes on axis 1"),
        ({"class_offset": 7}, ValueError, r"not within 0 and 9 \(num_classes\)$"),
        ({"class_offset": 1.5}, TypeError, "^class_offset is 1.5"),
        ({"num_classes": 0}, ValueError, "^num_classes is 0"),
        ({"num_classes": True}, TypeError, "^num_classes is True"),
        ({"num_classes": 7}, IndexError, r"^targets\[1\] is 7, out of range for 7 classes"),
        ({"targets": [0.0, 1.0]}, TypeError, "^targets has dtype float64 and the shape of class indices"),
        ({"targets": [0]}, ValueError, r"^targets has shape \(1,\), expected \(2,\)"),
        ({"targets": np.full((2, 3), -1.0)}, ValueError, r"^targets\[0, 0\] is -1.0, expected probabilities"),
        ({"logits": 1.0}, ValueError, "^logits is a scalar"),
        ({"axis": 2}, ValueError, "^axis is 2"),
        ({"weight": np.ones(3)}, ValueError, r"^weight has shape \(3,\), expected \(9,\)"),
        ({"label_smoothing": 2}, ValueError, "^label_smoothing is 2"),
        ({"temperature": 0}, ValueError, "^temperature is 0"),
        ({"softcap": -1}, ValueError, "^softcap is -1"),
        ({"ignore_index": 0.5}, TypeError, "^ignore_index is 0.5"),
        ({"num_threads": 0}, ValueError, "^num_threads is 0"),
    ],
    ids=str,
)
def test_wrong_arguments(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"logits": X, "targets": LABELS, "class_offset": 0, "num_classes": 9} | wrong
    with pytest.raises(error, match=message):
        fastce.block_stats(arguments.pop("logits"), arguments.pop("targets"), **arguments)
    arguments = {"logits": X, "targets": LABELS, "class_offset": 0, "num_classes": 9} | wrong
    with pytest.raises(error, match=message):
        fastce.grad_from_stats(arguments.pop("logits"), arguments.pop("targets"), STATS, **arguments)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"stats": None}, TypeError, "^stats is NoneType, expected BlockStats$"),
        ({"stats": STATS[:2]}, TypeError, "^stats is tuple, expected BlockStats$"),
        ({"stats": STATS._replace(mass=np.zeros(3))}, ValueError, r"^stats.mass has shape \(3,\), expected \(2,\)"),
        ({"upstream": np.ones(3)}, ValueError, r"^upstream has shape \(3,\)"),
        ({"subnormals": "drop"}, ValueError, "^subnormals is 'drop'"),
        ({"z_loss": -1}, ValueError, "^z_loss is -1"),
    ],
    ids=["none", "two arrays", "shape", "upstream", "subnormals", "z_loss"],
)
def test_wrong_arguments_of_gradients(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"stats": STATS} | wrong
    with pytest.raises(error, match=message):
        fastce.grad_from_stats(X, LABELS, arguments.pop("stats"), class_offset=0, num_classes=9, **arguments)


def test_wrong_arguments_of_losses_and_merges() -> None:
    with pytest.raises(ValueError, match=r"^targets has shape \(3,\), expected \(2,\)"):
        fastce.loss_from_stats(STATS, [0, 1, 2])
    with pytest.raises(TypeError, match="^targets has dtype float64"):
        fastce.loss_from_stats(STATS, [0.0, 1.0])
    with pytest.raises(ValueError, match="^temperature is -1"):
        fastce.loss_from_stats(STATS, LABELS, temperature=-1)
    with pytest.raises(ValueError, match="^temperature is nan"):
        fastce.merge_stats(STATS, STATS, temperature=NAN)
    with pytest.raises(TypeError, match="^b is list"):
        fastce.merge_stats(STATS, [1, 2, 3, 4])
    with pytest.raises(ValueError, match=r"^b.row_max has shape \(1,\), expected \(2,\)"):
        fastce.merge_stats(STATS, BlockStats(*(part[:1] for part in STATS)))
