"""Checks before any test is collected that the tests will test the built package, and that it is up to date.

The folder fastce/ of a checkout can be imported only after it has been built in place. An extension may be older than
its sources, and an installed copy may have been made from other sources. Tests of either would pass or fail for the
wrong reason, so the run ends with a message that says what to do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
EDITABLE = "    python -m pip install -e '.[test]'"
INSTALL = "    python -m pip install '.[test]'"
COMPILED = {".pyx", ".pxd", ".h", ".inc"}
SOURCES = {".py", ".pyi"} | COMPILED


def _files(folder: Path, suffixes: set[str]) -> dict[str, Path]:
    """Files in the folder and its subfolders, by their path relative to it."""
    found = (path for path in folder.rglob("*") if path.suffix in suffixes)
    return {path.relative_to(folder).as_posix(): path for path in found}


def _problem() -> str | None:
    """Why the tests cannot be trusted, or None."""
    spec = importlib.util.find_spec("fastce")
    if spec is None or spec.origin is None:
        return f"fastce is not installed. In {CHECKOUT} run\n{INSTALL}"
    package = Path(spec.origin).resolve().parent
    sources = CHECKOUT / "fastce"
    try:
        from fastce import _kernels
    except ImportError as error:
        said = f"fastce in {package} cannot be imported: {error}"
        if package != sources:
            return f"{said}\nIn {CHECKOUT} run\n{INSTALL}"
        return (
            f"{said}\nThis folder holds the sources, and they are not built in place. Install fastce:\n{INSTALL}\n"
            "and start `pytest` (not `python -m pytest`, which imports from the current folder first), "
            f"or build in place:\n{EDITABLE}"
        )
    if not sources.is_dir():
        return None
    if package == sources:
        built = Path(_kernels.__file__)
        compiled = _files(sources, COMPILED) | {"_build.py": sources / "_build.py"}
        newer = sorted(name for name, path in compiled.items() if path.stat().st_mtime > built.stat().st_mtime)
        return f"{built} is older than {', '.join(newer)}. Build again:\n{EDITABLE}" if newer else None
    here, there = _files(sources, SOURCES), _files(package, SOURCES)
    both = here.keys() & there.keys()
    differ = sorted(
        (here.keys() ^ there.keys()) | {name for name in both if here[name].read_bytes() != there[name].read_bytes()}
    )
    if differ:
        clean = "" if there.keys() <= here.keys() else "    rm -r build  # which holds files of an earlier build\n"
        return (
            f"The fastce installed in {package} was made from other sources than those in {sources}. "
            f"These files differ: {', '.join(differ)}. Run\n{clean}{INSTALL}"
        )
    return None


def pytest_configure(config: pytest.Config) -> None:
    if problem := _problem():
        pytest.exit(problem, returncode=pytest.ExitCode.USAGE_ERROR)


def pytest_report_header() -> list[str]:
    import fastce

    config = fastce.show_config(mode="dicts")
    return [
        f"fastce: {config['version']} in {Path(fastce.__file__).parent}",
        f"kernels: {config['isa']} of {', '.join(config['isa_available'])}; OpenMP {config['openmp']}, "
        f"{config['threads']} threads; {config['compiler']}; numpy {config['numpy']}",
    ]
