"""Before any test is collected: make sure that what is about to be tested is the built package, and up to date. The
folder fastce/ beside the tests looks importable and is not until it is built; an extension older than its sources, or
an installed copy of other sources, would be tested without a word. Each of these ends the run and says what to do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
EDITABLE = "    python -m pip install -e '.[test]'"
INSTALL = "    python -m pip install '.[test]'"
SOURCES = ("*.py", "*.pyi", "*.pyx", "*.pxd", "*.pxi", "*.h", "_simd/*")
COMPILED = ("*.pyx", "*.pxd", "*.pxi", "*.h", "_simd/*", "_build.py")


def _files(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for pattern in patterns for path in folder.glob(pattern)}


def _problem() -> str | None:
    """What keeps the tests from meaning anything, or None."""
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
            f"{said}\nThese are the sources, not built in place. Either start `pytest`, not `python -m pytest` (it "
            f"puts the checkout before the installed package), after\n{INSTALL}\nor build in place:\n{EDITABLE}"
        )
    if not sources.is_dir():
        return None
    if package == sources:
        built = Path(_kernels.__file__)
        newer = sorted(
            name for name, path in _files(sources, COMPILED).items() if path.stat().st_mtime > built.stat().st_mtime
        )
        return f"{built} is older than {', '.join(newer)}. Build again:\n{EDITABLE}" if newer else None
    theirs = _files(package, SOURCES)
    differ = sorted(
        name
        for name, path in _files(sources, SOURCES).items()
        if name not in theirs or path.read_bytes() != theirs[name].read_bytes()
    )
    if differ:
        return f"The installed fastce in {package} is not this checkout: {', '.join(differ)} differ. Run\n{INSTALL}"
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
