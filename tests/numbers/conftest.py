"""What the tests of numbers share."""

from __future__ import annotations

from types import ModuleType

import pytest

import fastce
import fastce.reference


@pytest.fixture(params=[fastce, fastce.reference], ids=["fastce", "reference"])
def package(request: pytest.FixtureRequest) -> ModuleType:
    """For rules that hold for the NumPy reference as well."""
    module: ModuleType = request.param
    return module
