"""The types that fastce ships. The stub has most options once, as keys of TypedDicts, which stubtest does not compare
with a function's parameters: the first tests here do that, and compare the docstrings' defaults with the run time. Then
type checkers: the rest of the stubs agrees with the run time, and a sample of calls gets the types it is promised."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastce

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
PACKAGE = Path(fastce.__file__).resolve().parent
SAMPLE = HERE / "typing_sample.py"
TIME_LIMIT = 300  # seconds; about ten without mypy's cache

FUNCTIONS = [
    name for name in fastce.__all__ if callable(getattr(fastce, name)) and not inspect.isclass(getattr(fastce, name))
]
LAYERS = ("CrossEntropyLoss", "LinearCrossEntropyLoss")
METHODS = [f"{layer}.{name}" for layer in LAYERS for name in ("__init__", "__call__", "backward")]

# What stubtest may complain of (regular expressions): names that Cython adds; a NumPy class by another name; modules
# whose library is not installed. The functions that take **options in the stub are added to it.
ALLOWED = r"""
fastce\._kernels\.__test__
fastce\._kernels\.(\w+\.)?__(reduce|setstate)_cython__
fastce\._kernels\.(Call|Function)
fastce\._config\.error
fastce\.(Linear)?CrossEntropyLoss\.__signature__
fastce\.integrations\..*
"""


def named(statements: list[ast.stmt], name: str) -> list[Any]:
    """Definitions of that name: several for overloads."""
    return [s for s in statements if isinstance(s, (ast.FunctionDef, ast.ClassDef)) and s.name == name]


STUB = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8")).body
IN_STUB: dict[str, list[ast.FunctionDef]] = {
    **{name: named(STUB, name) for name in FUNCTIONS},
    **{name: named(named(STUB, name.partition(".")[0])[0].body, name.partition(".")[2]) for name in METHODS},
}
WITH_OPTIONS = [name for name, overloads in IN_STUB.items() if any(o.args.kwarg for o in overloads)]


def keys(typed_dict: str) -> list[str]:
    (found,) = named(STUB, typed_dict)
    inherited = [key for base in found.bases if base.id != "TypedDict" for key in keys(base.id)]
    return inherited + [s.target.id for s in found.body if isinstance(s, ast.AnnAssign)]


def run_time_parameters(name: str) -> dict[str, inspect.Parameter]:
    parameters = dict(inspect.signature(attrgetter(name)(fastce)).parameters)
    if parameters.pop("options", None):  # of the layer
        linear = name.startswith("Linear")
        ours = inspect.signature(fastce.linear_cross_entropy if linear else fastce.cross_entropy).parameters.values()
        without = {"return_stats"} | ({"linear_bias"} if name == "LinearCrossEntropyLoss.__init__" else set())
        parameters |= {p.name: p for p in ours if p.kind is p.KEYWORD_ONLY and p.name not in without}
    return parameters


@pytest.mark.parametrize("name", IN_STUB)
def test_each_overload_takes_the_parameters_of_the_run_time(name: str) -> None:
    parameters = run_time_parameters(name)
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert IN_STUB[name], "not in the stub"
    for overload in IN_STUB[name]:
        arguments = overload.args
        assert [a.arg for a in arguments.args] == positional
        by_keyword = [a.arg for a in arguments.kwonlyargs]
        if arguments.kwarg:
            unpack = arguments.kwarg.annotation
            assert isinstance(unpack, ast.Subscript) and ast.unparse(unpack.value) == "Unpack"
            by_keyword += keys(ast.unparse(unpack.slice))
        assert sorted(by_keyword) == sorted(set(parameters) - set(positional))

        defaults = dict(zip(positional[::-1], arguments.defaults[::-1], strict=False))
        defaults |= {a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d}
        for parameter, default in defaults.items():
            value = ast.literal_eval(default)
            assert value is ... or repr(value) == repr(parameters[parameter].default), parameter


def test_the_layer_takes_the_options_that_its_types_promise() -> None:
    options = {name: p.default for name, p in run_time_parameters("cross_entropy").items() if p.kind is p.KEYWORD_ONLY}
    return_stats = options.pop("return_stats")
    for name in METHODS[:2]:
        of_backward = {"subnormals", "reuse_grad"}
        assert options.keys() == run_time_parameters(name).keys() - {"self", "logits", "targets"} - of_backward
    layer = fastce.CrossEntropyLoss(**options)
    assert layer(np.zeros((2, 3)), [0, 1], **options) == pytest.approx(np.log(3))
    with pytest.raises(TypeError):
        fastce.CrossEntropyLoss(return_stats=return_stats)  # type: ignore[call-arg]


def documented_defaults(thing: Any) -> dict[str, Any]:
    """As numpydoc writes them: "default X"; "optional" is None, but for lists of names as in another function."""
    docscrape = pytest.importorskip("numpydoc.docscrape", reason="numpydoc is not installed")
    defaults: dict[str, Any] = {}
    for names, kind, text in docscrape.NumpyDocString(inspect.getdoc(thing))["Parameters"]:
        for name in names.split(", "):
            if written := re.search(r"default (\S+|\(.*\))$", kind):
                defaults[name] = getattr(np, written[1], None) or ast.literal_eval(written[1])
            elif kind == "optional":
                (other,) = re.findall(r"As in `(\w+)`", " ".join(text))
                defaults[name] = run_time_parameters(other)[name].default
            elif kind.endswith(", optional"):
                defaults[name] = None
    return defaults


@pytest.mark.parametrize("name", [*FUNCTIONS, *LAYERS, *(f"{layer}.backward" for layer in LAYERS)])
def test_the_documented_defaults_are_those_of_the_run_time(name: str) -> None:
    thing = attrgetter(name)(fastce)
    parameters = inspect.signature(thing).parameters.values()
    expected = {p.name: p.default for p in parameters if p.default is not p.empty}
    documented = documented_defaults(thing)
    assert {n: repr(value) for n, value in documented.items()} == {n: repr(value) for n, value in expected.items()}


def check(*arguments: str, cwd: Path) -> None:
    """Runs a module of mypy on the fastce that is under test, wherever it is installed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", *arguments],
        cwd=cwd,
        env=os.environ | {"MYPYPATH": "" if "site-packages" in PACKAGE.parts else str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


needs_mypy = pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")


@pytest.mark.slow
@needs_mypy
def test_a_user_gets_the_promised_types_from_mypy_strict(tmp_path: Path) -> None:
    check(
        "mypy",
        "--config-file=",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path),
        str(SAMPLE),
        cwd=tmp_path,
    )


@pytest.mark.slow
@needs_mypy
def test_stubs_agree_with_the_run_time(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed.txt"
    allowed.write_text(ALLOWED + "".join(re.escape(f"fastce.{name}") + "\n" for name in WITH_OPTIONS))
    check(
        "mypy.stubtest",
        "fastce",
        "--allowlist",
        str(allowed),
        "--ignore-unused-allowlist",
        "--mypy-config-file",
        str(CHECKOUT / "pyproject.toml"),
        cwd=tmp_path,
    )


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("pyright") is None or shutil.which("node") is None,
    reason="pyright or node is not installed",
)
def test_pyright_complains_of_the_same_lines_as_mypy(tmp_path: Path) -> None:
    text = SAMPLE.read_text(encoding="utf-8")
    (tmp_path / SAMPLE.name).write_text(text, encoding="utf-8")
    settings = {"enableTypeIgnoreComments": False, "extraPaths": [str(PACKAGE.parent)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},  # of newer versions, which are no JSON
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    found = [d for d in json.loads(done.stdout)["generalDiagnostics"] if d["severity"] == "error"]
    wrong = {number for number, line in enumerate(text.splitlines()) if "# type: ignore[" in line}
    assert {d["range"]["start"]["line"] for d in found} == wrong, found
