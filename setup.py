"""What pyproject.toml cannot say: the compiled module. All about it is in fastce/_build.py, where a package that
vendors the folder finds it too. It is loaded by its path: `import fastce` needs what is only built here.

FASTCE_ABI3=1 makes the wheels for distribution: one for CPython 3.11 and later. Without it, and for free-threaded
Python, which has no stable ABI, the module is built for the running interpreter alone and its calls are faster."""

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
