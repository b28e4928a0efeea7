"""What is installed, asked without importing it."""

from __future__ import annotations

from importlib.machinery import PathFinder


def is_installed(module: str) -> bool:
    """Whether a top-level module is on sys.path.

    `importlib.util.find_spec` would ask the import hook of setuptools too. When it is asked for pip it changes for the
    whole process where distutils comes from, and a later import of setuptools warns."""
    return PathFinder.find_spec(module) is not None
