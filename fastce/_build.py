"""Build settings of the compiled module. setup.py calls `extension`. A package that vendors the folder does the same:

    spec = importlib.util.spec_from_file_location("_build", "hostpkg/_vendor/ce/_build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    setup(ext_modules=[build.extension("hostpkg._vendor.ce")])

This file is loaded by its path, because the package around it cannot be imported before it is built. It needs
setuptools, whose build_ext translates the .pyx file if Cython is installed. Besides the variables that setuptools reads
(CC, CFLAGS, LDFLAGS, ...), it reads FASTCE_OPENMP=0|1.

A -march option in CFLAGS is accepted. The module then runs on fewer processors, but its results stay right. Options
that change the treatment of NaN and infinities or the floating-point environment are refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from setuptools import Extension

FOLDER = Path(__file__).resolve().parent

# What the module is made of besides _kernels.pyx; it is built again when one of these changes.
SOURCES = ("*.h", "_simd/*", "*.pxd", "_build.py")

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,  # indices and strides are checked in Python, before a kernel runs
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "freethreading_compatible": True,
}

# CPython 3.11 is the first version whose limited API has the buffer protocol, which typed memoryviews need.
ABI3 = "0x030B0000"

# Without errno and trapping, comparisons and selections are vectorised. NaN, infinities and signed zeros still work.
# Python's own flags ask for debug information, which takes a third of the compiler's time and half of its memory.
UNIX_FLAGS = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden"]
MSVC_FLAGS = ["/O2"]

# VARIABLES and COMMANDS are the sources of compiler and linker options. FORBIDDEN options are of two kinds. Some let
# the compiler assume that there are no NaN and infinities, or reorder sums, so results would be wrong or less accurate.
# With others, gcc and clang link crtfastmath.o, which turns off subnormal numbers in every process that loads the
# module; setuptools puts CFLAGS on the link line too. The options may stand inside others, as in -Wp,-ffast-math.
VARIABLES = "CC CXX CPP LDSHARED LDCXXSHARED CFLAGS CXXFLAGS CPPFLAGS LDFLAGS ARCHFLAGS CL _CL_".split()
COMMANDS = "compiler_so linker_so".split()
FORBIDDEN = re.compile(
    r"""(?<![\w/-]) (?:
      -Ofast | --optimize=fast
    | -[f-] (?: fast-math | unsafe-math-optimizations | finite-math-only | associative-math | reciprocal-math )
    | -f (?: approx-func | no-honor-nans | no-honor-infinities | denormal-fp-math(?:-f32)?=(?!ieee)[\w,-]+ )
    | -m (?: daz-ftz | enable-no-nans | enable-no-infs )
    | -f?fp-model [=\s] ['"]? (?: fast | aggressive ) [\w=]*
    | [-/]fp:fast
    ) (?![\w-])""",
    re.VERBOSE,
)

OPENMP_PROBE = """
#include <omp.h>
#ifdef _MSC_VER
__declspec(dllexport)
#else
__attribute__((visibility("default")))
#endif
int openmp_probe(void)
{
    int version = 0;
    #pragma omp parallel num_threads(2)
    {
        #pragma omp master
        version = omp_get_num_threads() >= 1 ? _OPENMP : 0;
    }
    return version;
}
"""


class BuildError(SystemExit):
    """Stops the build with a message, without a traceback."""


def extension(package: str, *, compiler: str | None = None, abi3: bool = False) -> Extension:
    """The compiled module of this folder, for `setup(ext_modules=[...])`.

    Parameters
    ----------
    package
        Name under which the folder will be imported, for example ``"hostpkg._vendor.ce"``.
    compiler
        Name of the compiler in setuptools ("unix", "msvc", "mingw32"), if it is not the default of the platform.
    abi3
        Build for the stable ABI of CPython 3.11, so that one module works with CPython 3.11 and later. A small call
        then takes up to a tenth longer. Some interpreters have no stable ABI; see `has_abi3`.

    Raises
    ------
    BuildError
        Cython is missing or too old. An option in the environment would make results wrong. FASTCE_OPENMP is neither 0
        nor 1, or it is 1 and no OpenMP is found. `abi3` is true and the interpreter has no stable ABI.
    """
    _check_cython(package)
    if abi3 and not has_abi3():
        raise BuildError(f"{package}: {sys.version.split()[0]} has no stable ABI; build without abi3")
    cc = _compiler(compiler)
    check_flags(package, cc)
    compile_args, link_args = flags(package, cc)
    folder = Path(os.path.relpath(FOLDER))  # setuptools wants sources relative to the setup script
    ext = Extension(
        f"{package}._kernels",
        [(folder / "_kernels.pyx").as_posix()],
        depends=sorted(path.as_posix() for pattern in SOURCES for path in folder.glob(pattern)),
        include_dirs=[folder.as_posix()],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=[("Py_LIMITED_API", ABI3)] if abi3 else [],
        py_limited_api=abi3,
    )
    # These are for Cython's build_ext, which setuptools uses. The generated C file goes to build/, not to the sources.
    ext.cython_directives = DIRECTIVES
    ext.cython_c_in_temp = True
    return ext


def has_abi3() -> bool:
    """Whether this interpreter loads abi3 modules. CPython does, except its free-threaded build. PyPy does not."""
    return sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")


def flags(package: str, cc: Any) -> tuple[list[str], list[str]]:
    """Compiler and linker arguments for the compiler object `cc`. OpenMP is used if a test program with it works."""
    msvc = cc.compiler_type == "msvc"
    ours = MSVC_FLAGS if msvc else UNIX_FLAGS
    serial = ours + ([] if msvc else ["-fopenmp-simd"])  # for `omp simd` without threads
    wish = os.environ.get("FASTCE_OPENMP", "")
    if wish not in ("", "0", "1"):
        raise BuildError(f"{package}: FASTCE_OPENMP is {wish!r}, expected 0 (do without), 1 (insist) or unset")
    if wish == "0":
        return serial, []
    for compile_args, link_args in _openmp_candidates(msvc):
        if _openmp_works(cc, compile_args, link_args):
            return ours + compile_args, link_args
    command = " ".join(getattr(cc, "compiler_so", None) or [cc.compiler_type])
    reason = f"{package}: no working OpenMP found with the compiler `{command}`"
    if wish == "1":
        raise BuildError(f"{reason}, and FASTCE_OPENMP=1 insists on it")
    print(f"{reason}; building without threads (FASTCE_OPENMP=1 makes this an error)", file=sys.stderr)
    return serial, []


def check_flags(package: str, cc: Any = None) -> None:
    """Raise an error if an option changes the floating-point environment or the treatment of NaN and infinities."""
    places = {name: os.environ.get(name, "") for name in VARIABLES}
    places |= {f"the compiler's {name}": " ".join(getattr(cc, name, None) or []) for name in COMMANDS}
    for place, text in places.items():
        if found := FORBIDDEN.search(text):
            raise BuildError(
                f"{package}: refusing to build: {place} contains {found[0]}. It lets the compiler assume that "
                "there are no NaN and infinities, or links code that switches off subnormal numbers in every process "
                f"that loads the module: results here and in other libraries would be wrong. Remove it from {place}."
            )


def _check_cython(package: str) -> None:
    try:
        from Cython import __version__ as version
    except ImportError:
        version = "not installed"
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < (3, 1):
        raise BuildError(f"{package}: building needs Cython >= 3.1, which is {version}")


def _compiler(name: str | None) -> Any:
    """The compiler that build_ext will use, with the settings from the build of Python and from the environment."""
    from distutils.ccompiler import new_compiler  # the copy in setuptools, which its import has put in place
    from distutils.sysconfig import customize_compiler

    cc = new_compiler(compiler=name)
    customize_compiler(cc)
    return cc


def _openmp_candidates(msvc: bool) -> list[tuple[list[str], list[str]]]:
    if msvc:
        return [(["/openmp"], [])]
    candidates = [(["-fopenmp"], ["-fopenmp"])]
    if sys.platform == "darwin":
        # Apple's clang accepts the pragmas but has no OpenMP runtime. Homebrew's libomp is not in its search path.
        candidates.append((["-Xpreprocessor", "-fopenmp"], ["-lomp"]))
        for prefix in ("/opt/homebrew/opt/libomp", "/usr/local/opt/libomp"):
            candidates.append((["-Xpreprocessor", "-fopenmp", f"-I{prefix}/include"], [f"-L{prefix}/lib", "-lomp"]))
    return candidates


def _openmp_works(cc: Any, compile_args: list[str], link_args: list[str]) -> bool:
    """Whether a parallel region works in a shared object that is built and loaded like the extension module."""
    with tempfile.TemporaryDirectory() as tmp:
        source = Path(tmp, "openmp_probe.c")
        source.write_text(OPENMP_PROBE)
        library = str(source.with_suffix(".dll" if sys.platform == "win32" else ".so"))
        try:
            objects = cc.compile([str(source)], output_dir=tmp, extra_postargs=compile_args)
            cc.link_shared_object(objects, library, extra_postargs=link_args)
        except Exception:  # the type depends on the compiler, which has printed the reason
            return False
        if "_PYTHON_HOST_PLATFORM" in os.environ:  # cross-compiling: the result cannot run here
            return True
        run = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).openmp_probe() <= 0)"
        try:
            return subprocess.run([sys.executable, "-c", run, library], capture_output=True, timeout=60).returncode == 0
        except subprocess.TimeoutExpired:
            return False
