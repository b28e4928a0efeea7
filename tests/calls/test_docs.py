"""The documentation: every example runs, and every docstring says what the function takes, returns and raises."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import fastce

README = Path(__file__).resolve().parents[2] / "README.md"
API = README.parent / ".docs" / "index.md"
PUBLIC = {name: getattr(fastce, name) for name in fastce.__all__ if not name.startswith("_")}
CALLABLES = {name: thing for name, thing in PUBLIC.items() if callable(thing)}
FUNCTIONS = {name: thing for name, thing in CALLABLES.items() if inspect.isfunction(thing)}
REFERENCE = {f"reference.{name}": getattr(fastce.reference, name) for name in fastce.reference.__all__}
METHODS, REFERENCE_METHODS = (
    {
        f"{name}.{method}": getattr(thing, method)
        for name, thing in things.items()
        if inspect.isclass(thing) and not issubclass(thing, tuple)
        for method in vars(thing)
        if inspect.isfunction(getattr(thing, method)) and (not method.startswith("_") or method == "__call__")
    }
    for things in (CALLABLES, REFERENCE)
)
EXAMPLES = {**PUBLIC, **METHODS, **REFERENCE, **REFERENCE_METHODS}
INTEGRATIONS = sorted(path.stem for path in (Path(fastce.__file__).parent / "integrations").glob("[!_]*.py"))

# Checks of numpydoc's validator that are left out, with the reason.
NOT_CHECKED = {
    "ES01": "no extended summary: details are in the parameters and the notes",
    "SA01": "no See Also: only some functions have related ones",
    "RT02": "results have names, which the formulas in the notes use",
    "SS05": "the check takes a plural noun, such as Probabilities, for a verb",
}
# The functions of fastce describe the same parameters and results as those of fastce.reference.
DESCRIBED_IN_FASTCE = {"PR01", "RT01"}


def documentation(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def sections(thing: Any) -> dict[str, str]:
    """The sections of a docstring, by title."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", documentation(thing), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def documented_names(section: str) -> set[str]:
    """The names at the left margin, as in `a, b : type` and `a`."""
    lines = [line.split(" : ")[0] for line in section.splitlines() if re.match(r"[*\w]", line)]
    return {name.strip().lstrip("*") for line in lines for name in line.split(",")}


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Each block with the number of lines before it, so that a traceback shows the right line."""
    found = re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_of_the_docstrings(name: str) -> None:
    thing = EXAMPLES[name]
    source = vars(inspect.getmodule(thing)) if not inspect.ismodule(thing) else vars(thing)
    failures: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder(recurse=False).find(thing, name, globs=dict(source)):
        runner.run(test, out=failures.append)
    assert not runner.failures, "".join(failures)


def public_names(module: str) -> list[str]:
    """The full names of functions, classes and methods, as numpydoc's validator takes them."""
    there = importlib.import_module(module)
    names = []
    for name in there.__all__:
        thing = getattr(there, name)
        if inspect.ismodule(thing):
            continue
        names.append(f"{module}.{name}")
        if inspect.isclass(thing):
            methods = [m for m, f in vars(thing).items() if inspect.isfunction(f)]
            names += [f"{module}.{name}.{m}" for m in methods if not m.startswith("_") or m == "__call__"]
    return names


def complaints(name: str, not_checked: set[str]) -> list[str]:
    validate = pytest.importorskip("numpydoc.validate", reason="numpydoc is not installed").validate
    return [f"{name}: {code} {text}" for code, text in validate(name)["errors"] if code not in not_checked]


@pytest.mark.parametrize("module", ["fastce", "fastce.reference"])
def test_docstrings_are_complete(module: str) -> None:
    not_checked = {*NOT_CHECKED, *(DESCRIBED_IN_FASTCE if module == "fastce.reference" else ())}
    names = public_names(module)
    assert len(names) >= 14
    assert [text for name in names for text in complaints(name, not_checked)] == []


@pytest.mark.parametrize("name", [*INTEGRATIONS, "_torch_functional"])
def test_docstrings_of_integrations_are_complete(name: str) -> None:
    """Their examples run in tests/peers/test_integrations.py."""
    library = {"mpi": "mpi4py"}.get(name, name.lstrip("_").partition("_")[0])
    if library in ("autograd", "dask", "jax", "mpi4py", "sklearn", "torch"):  # these import their library
        pytest.importorskip(library, reason=f"{library} is not installed")
    names = public_names(f"fastce.integrations.{name}")
    assert names
    assert [text for public in names for text in complaints(public, set(NOT_CHECKED))] == []


@pytest.mark.parametrize("name", sorted(CALLABLES))
def test_public_names_have_examples(name: str) -> None:
    examples = doctest.DocTestParser().get_examples(documentation(CALLABLES[name]))
    assert any(example.want for example in examples)


@pytest.mark.parametrize("name", sorted({**CALLABLES, **METHODS}))
def test_every_parameter_is_documented(name: str) -> None:
    thing = {**CALLABLES, **METHODS}[name]
    found = sections(thing)
    parameters = [p for p in inspect.signature(thing).parameters if p != "self"]
    described = documented_names(found.get("Parameters", ""))
    assert [p for p in parameters if p not in described] == []
    assert documentation(thing).splitlines()[0].endswith("."), "the first line is a sentence"


@pytest.mark.parametrize("name", sorted({**FUNCTIONS, **METHODS}))
def test_functions_say_what_they_return_and_raise(name: str) -> None:
    found = sections({**FUNCTIONS, **METHODS}[name])
    assert {"Returns", "Raises"} <= set(found)
    assert found["Returns"].strip()
    assert re.search(r"^\w*(Error|Exception)", found["Raises"], flags=re.MULTILINE)


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - {"show_config"}))
def test_functions_have_a_formula(name: str) -> None:
    assert "``" in sections(FUNCTIONS[name])["Notes"] or "The formula is that of" in sections(FUNCTIONS[name])["Notes"]


def test_everything_public_is_exported_and_sorted() -> None:
    assert sorted(fastce.__all__) == list(fastce.__all__)
    assert documentation(fastce)
    assert documentation(fastce.reference)
    hidden = [name for name, thing in vars(fastce).items() if callable(thing) and name[0] != "_" and name not in PUBLIC]
    assert hidden == []


@pytest.mark.skipif(not API.exists(), reason="there is no checkout")
def test_the_api_reference_lists_everything_public() -> None:
    listed = re.findall(r"^   (\w+)$", API.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(set(PUBLIC) - {"reference"})


def test_the_reference_has_the_same_signatures() -> None:
    alone = ("one_hot", "merge_stats", "loss_from_stats")  # have no threads
    for name in fastce.reference.__all__:
        theirs, mine = (inspect.signature(getattr(module, name)).parameters for module in (fastce.reference, fastce))
        if inspect.isfunction(getattr(fastce, name)):
            without = {"num_threads", "chunk_bytes"} if "linear" in name else {"num_threads"}
            assert set(mine) - set(theirs) == (set() if name in alone else without)
            assert set(theirs) <= set(mine)
            for parameter in theirs:
                assert mine[parameter].default == theirs[parameter].default


def test_readme_names_every_option_of_cross_entropy() -> None:
    text = README.read_text(encoding="utf-8")
    (rows,) = re.findall(r"^\| option \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    named = {name for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    functions = (fastce.cross_entropy, fastce.cross_entropy_with_grad, fastce.cross_entropy_grad)
    taken = {name for function in functions for name in inspect.signature(function).parameters}
    assert named == taken - {"logits"}


def test_readme_examples_run_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one session. Results of prompts (>>>) are compared with what the README shows."""
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(README.read_text(encoding="utf-8"))
    assert blocks
    names: dict[str, Any] = {"__name__": "__main__"}
    for line, code in blocks:
        if ">>>" in code:
            failures: list[str] = []
            test = doctest.DocTestParser().get_doctest(code, names, "README", str(README), line)
            runner = doctest.DocTestRunner(verbose=False)
            runner.run(test, out=failures.append, clear_globs=False)
            assert not runner.failures, "".join(failures)
            names |= test.globs
        else:
            exec(compile("\n" * line + code, str(README), "exec"), names)
