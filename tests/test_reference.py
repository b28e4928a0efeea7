"""The NumPy reference: that it stands alone, takes what fastce takes, and is right. Its values are compared with the
exact ones; what both it and fastce must do with infinities, NaN and ignored rows is in test_values.py."""

from __future__ import annotations

import ast
import doctest
import inspect
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastce
from fastce import reference

from .oracle import exact, needs_longdouble

SOURCE = Path(reference.__file__)
FUNCTIONS = ("cross_entropy", "cross_entropy_with_grad", "cross_entropy_grad")
# Textbook formulas lose digits to cancellation (p - 1, lse - x): a few eps of numbers of size 10, in sums of 12 rows.
TEXTBOOK = {np.float32: 2e-5, np.float64: 4e-14}
NAMES = ("weight", "sample_weight", "label_smoothing", "z_loss")
OPTIONS = [
    {key: value for key, value in zip(NAMES, chosen, strict=True) if value}
    for chosen in itertools.product((None, "vector"), (None, "vector"), (0.0, 0.2), (0.0, 0.01))
]


def test_imports_nothing_but_numpy():
    imported = {
        alias.name if isinstance(node, ast.Import) else "." * node.level + (node.module or "")
        for node in ast.walk(ast.parse(SOURCE.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert imported == {"numpy", "typing"}


def test_runs_from_its_file_alone(tmp_path):
    """As it does where the extension was not built, or the file was copied elsewhere."""
    copy = tmp_path / "twin.py"
    copy.write_bytes(SOURCE.read_bytes())
    code = "import sys, numpy as np, twin; print(twin.cross_entropy(np.zeros((2, 4)), [0, 1]), 'fastce' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.split() == [str(np.log(4.0)), "False"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_is_that_of_fastce_without_threads(name):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (fastce, reference))
    assert [p for p in ours if p != "num_threads"] == list(theirs)
    for key, parameter in theirs.items():
        assert (ours[key].default, ours[key].kind) == (parameter.default, parameter.kind), key


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="num_threads"):
        reference.cross_entropy(np.zeros((1, 2)), np.zeros(1, int), num_threads=1)


def test_docstring_examples_run():
    result = doctest.testmod(reference)
    assert result.attempted > 0 and result.failed == 0


@needs_longdouble
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["index", "probability"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
def test_values_are_right(options, kind, dtype):
    rng = np.random.default_rng(20)
    shape, axis = (3, 6, 4), 1
    logits = rng.normal(0, 3, shape).astype(dtype)
    targets = rng.integers(0, 6, (3, 4)) if kind == "index" else rng.random(shape).astype(dtype)
    if kind == "index":
        targets[0, 1] = -100
    vectors = {"weight": rng.random(6).astype(dtype), "sample_weight": rng.random((3, 4)).astype(dtype)}
    options = {key: vectors.get(key, value) for key, value in options.items()}
    for reduction, normalizer in (("mean", None), ("mean", 7.0), ("sum", None), ("none", None)):
        upstream = rng.normal(size=(3, 4)).astype(dtype) if reduction == "none" else 0.75
        options |= {"reduction": reduction, "normalizer": normalizer, "axis": axis}
        want = exact(logits, targets, **options, upstream=upstream)
        close = {"rtol": TEXTBOOK[dtype], "atol": TEXTBOOK[dtype]}

        loss, stats = reference.cross_entropy(logits, targets, **options, return_stats=True)
        fused, grad = reference.cross_entropy_with_grad(logits, targets, **options, upstream=upstream)
        out = np.full(shape, np.nan, dtype)
        with_stats = reference.cross_entropy_grad(logits, targets, **options, upstream=upstream, out=out, stats=stats)
        np.testing.assert_allclose(loss, want.loss.astype(dtype), **close)
        np.testing.assert_allclose(fused, want.loss.astype(dtype), **close)
        np.testing.assert_allclose(grad, want.grad.astype(dtype), **close)
        np.testing.assert_allclose(with_stats, want.grad.astype(dtype), **close)
        np.testing.assert_allclose(stats.row_max, want.row_max.astype(dtype), **close)
        np.testing.assert_allclose(stats.tail, want.tail.astype(dtype), **close)
        np.testing.assert_array_equal(reference.cross_entropy_grad(logits, targets, **options, upstream=upstream), grad)
        assert with_stats is out
        assert loss.dtype == fused.dtype == grad.dtype == stats.tail.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_short_program_equals_the_general_one(reduction, dtype):
    """Without options a shorter path is taken; weights of one take the general path to the same numbers."""
    rng = np.random.default_rng(21)
    logits, labels = rng.normal(0, 5, (40, 9)).astype(dtype), rng.integers(0, 9, 40)
    ones = np.ones(9, dtype)
    short = reference.cross_entropy_with_grad(logits, labels, reduction=reduction, upstream=2.5)
    general = reference.cross_entropy_with_grad(logits, labels, reduction=reduction, upstream=2.5, weight=ones)
    tolerance = {"rtol": 10 * np.finfo(dtype).eps, "atol": 10 * np.finfo(dtype).eps}
    np.testing.assert_allclose(short[0], general[0], **tolerance)
    np.testing.assert_allclose(short[1], general[1], **tolerance)
    np.testing.assert_allclose(reference.cross_entropy(logits, labels, reduction=reduction), short[0], **tolerance)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_out_may_be_the_logits_or_the_targets(reduction):
    rng = np.random.default_rng(22)
    logits, probabilities = rng.normal(size=(5, 7)), rng.random((5, 7))
    labels = rng.integers(0, 7, 5)
    for targets in (labels, probabilities):
        expected = reference.cross_entropy_with_grad(logits, targets, reduction=reduction)
        buffer = logits.copy()
        loss, grad = reference.cross_entropy_with_grad(buffer, targets, reduction=reduction, out=buffer)
        assert grad is buffer
        np.testing.assert_array_equal(grad, expected[1])
        np.testing.assert_array_equal(loss, expected[0])
    buffer = probabilities.copy()
    grad = reference.cross_entropy_grad(logits, buffer, reduction=reduction, out=buffer)
    np.testing.assert_array_equal(grad, expected[1])


def test_layer_form_equals_the_functions():
    rng = np.random.default_rng(23)
    logits, labels, weight = rng.normal(size=(6, 5)), rng.integers(0, 5, 6), rng.random(5)
    layer = reference.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    loss, grad = reference.cross_entropy_with_grad(logits, labels, weight=weight, label_smoothing=0.1, upstream=3.0)
    np.testing.assert_allclose(layer(logits, labels), loss, rtol=1e-15)
    np.testing.assert_allclose(layer.backward(3.0), grad, rtol=1e-13, atol=1e-16)
