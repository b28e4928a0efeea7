"""The types that fastce ships, checked by mypy: the stubs say what is there at run time, and a sample of calls gets the
types it is promised. Whoever has no mypy learns so from the skip's reason."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastce

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
PACKAGE = Path(fastce.__file__).resolve().parent
TIME_LIMIT = 300  # seconds; about ten without mypy's cache

# What stubtest may complain of (regular expressions): names that Cython adds; modules whose library is not installed.
ALLOWED = r"""
fastce\._kernels\.__test__
fastce\._kernels\.\w+\.__(reduce|setstate)_cython__
fastce\._kernels\.Targets
fastce\.integrations\..*
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed"),
]


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


def test_a_user_gets_the_promised_types_from_mypy_strict(tmp_path: Path) -> None:
    check(
        "mypy",
        "--config-file=",
        "--strict",
        "--follow-imports=silent",
        "--cache-dir",
        str(tmp_path),
        str(HERE / "typing_sample.py"),
        cwd=tmp_path,
    )


def test_stubs_agree_with_the_run_time(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed.txt"
    allowed.write_text(ALLOWED)
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
