"""What is installed, asked without importing it."""

from __future__ import annotations

import importlib.util
import warnings


def is_installed(module: str) -> bool:
    with warnings.catch_warnings():  # setuptools' import hook warns when another test has imported distutils
        warnings.simplefilter("ignore")
        return importlib.util.find_spec(module) is not None
