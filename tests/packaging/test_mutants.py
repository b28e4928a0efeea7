"""The list of mutants in .ci/mutants.py, without building them: each finds the text that it replaces, and its tests."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(
    not (CHECKOUT / ".ci" / "mutants.py").is_file(), reason="the list lies in a checkout, and there is none"
)


def is_defined(test: str) -> bool:
    """Whether the file, class and function that pytest's name of a test consists of exist."""
    file, *names = test.partition("[")[0].split("::")
    if not (CHECKOUT / file).is_file():
        return False
    body = ast.parse((CHECKOUT / file).read_text(encoding="utf-8")).body
    for name in names:
        found = [node for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name]
        if not found:
            return False
        body = found[0].body
    return True


def test_each_mutant_finds_its_text_and_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CHECKOUT / ".ci")
    mutants = importlib.import_module("mutants").MUTANTS
    assert len({mutant.name for mutant in mutants}) == len(mutants) >= 30
    for mutant in mutants:
        text = (CHECKOUT / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, f"{mutant.name}: {mutant.file} must contain once: {mutant.old}"
        assert mutant.new != mutant.old, mutant.name
        assert mutant.tests, f"{mutant.name} has no tests"
        for test in mutant.tests:
            assert is_defined(test), f"{mutant.name}: there is no {test}"
