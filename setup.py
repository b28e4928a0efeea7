"""Build the compiled module. Its settings are in fastce/_build.py, so that a package that vendors the folder can use
them too. That file is loaded by its path, because `import fastce` needs the compiled module.

FASTCE_ABI3=1 builds one wheel for CPython 3.11 and later. Without it, the module is built for the running interpreter
only, and its calls are faster. Free-threaded Python has no stable ABI, so FASTCE_ABI3 has no effect there."""

import importlib.util
import os
from pathlib import Path

from setuptools import setup

spec = importlib.util.spec_from_file_location("_build", Path(__file__).resolve().parent / "fastce" / "_build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

wish = os.environ.get("FASTCE_ABI3", "")
if wish not in ("", "0", "1"):
    raise build.BuildError(f"fastce: FASTCE_ABI3 is {wish!r}, expected 0, 1 or unset")
abi3 = wish == "1" and build.has_abi3()
setup(
    ext_modules=[build.extension("fastce", abi3=abi3)],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if abi3 else {},
)
