"""Calls of fastce under an instruction set that this process does not use: the choice is made at import, so they run in
an interpreter of their own. For the tests of numbers that every instruction set must get right."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastce

AVAILABLE: list[str] = fastce.show_config(mode="dicts")["isa_available"]
TIME_LIMIT = 120  # seconds; a few are taken
SCRIPT = """
import pickle, sys
import fastce
with open("calls", "rb") as file:
    calls = pickle.load(file)
results = [getattr(fastce, name)(*arguments, **options) for name, arguments, options in calls]
with open("results", "wb") as file:
    pickle.dump((fastce.show_config(mode="dicts")["isa"], results), file)
"""


def computed_with(isa: str, calls: Sequence[tuple[str, tuple[Any, ...], dict[str, Any]]], folder: Path) -> list[Any]:
    """What the calls (name, arguments, options) return under that instruction set. `folder` is empty and temporary."""
    (folder / "calls").write_bytes(pickle.dumps(calls))
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT],
        cwd=folder,
        env=os.environ | {"FASTCE_ISA": isa},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert done.returncode == 0, done.stderr
    used, results = pickle.loads((folder / "results").read_bytes())
    assert used == isa
    return results
