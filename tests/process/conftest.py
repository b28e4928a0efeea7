"""The fixture that runs scripts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripts import run_script


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """`run_script` in a temporary folder."""
    return functools.partial(run_script, tmp_path)
