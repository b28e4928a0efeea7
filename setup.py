"""The one thing pyproject.toml cannot say: the compiled module. All about it is in fastce/_build.py, where a package
that vendors the folder finds it too. It is loaded by its path: `import fastce` needs what is only built here."""

import importlib.util
from pathlib import Path

from setuptools import setup

spec = importlib.util.spec_from_file_location("_build", Path(__file__).resolve().parent / "fastce" / "_build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

setup(ext_modules=[build.extension("fastce")])
