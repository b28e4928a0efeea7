"""The NumPy reference: that it stands alone, takes what fastce takes, and is right. Its values are compared with the
exact ones. What both it and fastce do by hand, and with infinities, NaN and ignored rows, is in test_by_hand.py and
test_special_values.py."""

from __future__ import annotations

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from functions import F32, F64, FAMILIES, FUNCTIONS, combinations, dtypes, numbers, over
from oracle import needs_longdouble

import fastce
from fastce import reference

SOURCE = Path(reference.__file__)
NAMES = sorted({function.name for function in FUNCTIONS} | {"one_hot", "predict"})
# Textbook formulas lose digits to cancellation (p - 1, lse - x): a few eps of numbers of size 10, in sums of 12 rows.
TEXTBOOK = {F32: 2e-5, F64: 4e-14}
TERMS = {"sigmoid": 2, "two_term": 2}  # of numbers of that size


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


@pytest.mark.parametrize("name", NAMES)
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


def _options(family, x, axis):
    """Every combination of options that the family takes, with every reduction."""
    rng = np.random.default_rng(20)
    lead = np.delete(x.shape, axis)
    vectors = {"weight": rng.random(x.shape[axis]), "pos_weight": rng.random(x.shape[axis])}
    vectors["sample_weight"] = rng.random(lead)
    for chosen in combinations(family):
        options = {key: vectors[key].astype(x.dtype) if key in vectors else value for key, value in chosen.items()}
        if not family.is_reduced:
            yield options
            continue
        for reduction, normalizer in (("mean", None), ("mean", 7.0), ("sum", None), ("none", None)):
            upstream = 0.75
            if reduction == "none":
                upstream = rng.normal(size=lead if family.by_row else x.shape).astype(x.dtype)
            yield options | {"reduction": reduction, "normalizer": normalizer, "upstream": upstream}


@needs_longdouble
@dtypes
@over(FAMILIES)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_values_are_right(axis, family, dtype):
    x = numbers((3, 6, 4), dtype)
    arrays = family.arguments(x, axis=axis)
    for options in _options(family, x, axis):
        options |= {"axis": axis}
        want, seen = family.exact(*arrays, **options), {}
        close = dict.fromkeys(("rtol", "atol"), TEXTBOOK[dtype] * TERMS.get(family.name, 1))
        for function in family.functions:
            given = function.taken(options)
            for name, got in function(*arrays, package=reference, **given).items():
                assert got.dtype == dtype
                np.testing.assert_allclose(got, np.asarray(getattr(want, name).value).astype(dtype), **close)
                np.testing.assert_array_equal(got, seen.setdefault(name, got))
            if function.name == "cross_entropy":
                _, stats = reference.cross_entropy(*arrays, **given, return_stats=True)
                np.testing.assert_allclose(stats.row_max, want.row_max.astype(dtype), **close)
                np.testing.assert_allclose(stats.tail, want.tail.astype(dtype), **close)
                assert stats.tail.dtype == dtype
            if function.name == "cross_entropy_grad":
                out = np.full_like(x, np.nan)
                got = reference.cross_entropy_grad(*arrays, **given, stats=stats, out=out)
                assert got is out
                np.testing.assert_allclose(got, want.grad.value.astype(dtype), **close)


@over([function for function in FUNCTIONS if function.out])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_out_may_be_new_or_any_of_the_arrays(reduction, axis, function):
    arrays = function.family.arguments(numbers((6, 6), F64), axis=axis)
    options = function.taken({"axis": axis, "reduction": reduction})
    expected = function(*arrays, package=reference, **options)
    out = np.full_like(expected[function.out], np.nan)
    cases = [(arrays, out)]
    for i, a in enumerate(arrays):
        if a.shape == out.shape and a.dtype == out.dtype:
            buffer = a.copy()
            cases.append(((*arrays[:i], buffer, *arrays[i + 1 :]), buffer))
    assert len(cases) > 1 or function.name == "logsumexp"
    for given, buffer in cases:
        got = function(*given, package=reference, **options, out=buffer)
        assert got[function.out] is buffer
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value)


@dtypes
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


def test_layer_form_equals_the_functions():
    rng = np.random.default_rng(23)
    logits, labels, weight = rng.normal(size=(6, 5)), rng.integers(0, 5, 6), rng.random(5)
    layer = reference.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    loss, grad = reference.cross_entropy_with_grad(logits, labels, weight=weight, label_smoothing=0.1, upstream=3.0)
    np.testing.assert_allclose(layer(logits, labels), loss, rtol=1e-15)
    np.testing.assert_allclose(layer.backward(3.0), grad, rtol=1e-13, atol=1e-16)
