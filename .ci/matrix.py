"""Builds fastce with one compiler after another, and runs its tests on processors that this machine does not have,
under sanitizers and valgrind, and beside busy processes.

    python .ci/matrix.py                      every cell that can run here
    python .ci/matrix.py --list               what there is, and what each cell lacks on this machine
    python .ci/matrix.py clang aarch64        these cells
    python .ci/matrix.py --install ...        install what is missing first (Debian, as root)

A cell builds the checkout with -Wall -Wextra, and any warning fails it, whether it comes from the headers or from the C
that Cython writes; checks that compiler, OpenMP runtime and instruction set are those it is about; and runs a part of
the tests (--full: all of them) in a virtual environment of its own. It is skipped, with the reason, when what it needs
is not there. The exit status is 1 when a cell failed. Needs Linux, Python with venv, and network for pip.

A build with a sanitizer may warn: compilers understand less of what a sanitizer adds. Before the tests, such a cell
makes the mistakes that it looks for, and fails if one of them is not reported. It runs its own selection with --full
too, since many tests count threads, limit memory or start compilers, which a sanitizer disturbs.

Processors are emulated by QEMU's user mode. A clang build always calls LLVM's libomp, since clang generates no code for
libgomp (with -fopenmp=libgomp it ignores the pragmas); a gcc build calls whichever is found as libgomp.so.1, which
LLVM's libomp can be too. So there are a gcc build on each of them, and a clang build in a process that holds both."""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import tomllib
import traceback
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
TIME_LIMIT = 1200  # seconds for each command; the longest takes about two minutes
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
TEST_DEPENDENCIES = PROJECT["project"]["optional-dependencies"]["test"]
# Without the tests of other packages, which do not exist everywhere.
FEW_DEPENDENCIES = [name for name in TEST_DEPENDENCIES if re.match("pytest|hypothesis|mpmath", name)]
VERSION = sysconfig.get_python_version()
WARNING = re.compile(r"\S+: warning: .*")
# Without OpenMP nobody reads the variable in which the C that Cython writes for a prange holds the number of threads.
CYTHONS_OWN = re.compile(r"warning: variable '__pyx_t_\d+' set but not used \[-Wunused-but-set-variable\]")
BUILDS = {
    "gcc": {"CC": "gcc", "FASTCE_OPENMP": 1},
    "gcc-serial": {"CC": "gcc", "FASTCE_OPENMP": 0},
    "clang": {"CC": "clang", "FASTCE_OPENMP": 1},
}

# Nothing of the caller's may decide what is built or tested. OPENBLAS_CORETYPE, for one, makes NumPy's OpenBLAS use
# instructions that an emulated processor lacks.
DROPPED = re.compile(
    r"(CC|CXX|CPP|C(XX|PP)?FLAGS|LD(CXX)?SHARED|LDFLAGS|ARCHFLAGS|VIRTUAL_ENV|LD_PRELOAD)$"
    r"|_?PYTHON|FASTCE_|OMP_|GOMP_|KMP_|LIBOMP|OPENBLAS_|MKL_|NPY_|QEMU_|PYTEST_|HYPOTHESIS_"
)

# What depends on the compiler, the OpenMP runtime or the processor.
NATIVE = "tests/process tests/numbers tests/calls/test_layouts.py tests/calls/test_shared_memory.py".split()
# Python alone: another compiler changes nothing.
NATIVE += [f"--ignore=tests/numbers/test_{name}.py" for name in ("linear", "merging")]
NATIVE += ["--deselect=tests/numbers/test_large_arrays.py::test_more_than_2_to_31_logits"]
# The same in the time that an emulator needs.
EMULATED = "tests/process tests/numbers/test_by_hand.py tests/numbers/test_special_values.py".split()
EMULATED += ["tests/numbers/test_numerics.py"]
EMULATED += ["-k", "(instruction_set or by_hand or special or underflow) and not reference"]
# Under sanitizers, under each instruction set: a program that calls everything (below), special values, and what is
# refused. --full adds all numbers, layouts and shared memory, under the best instruction set.
SANITIZED = "tests/numbers/test_by_hand.py tests/numbers/test_special_values.py".split()
SANITIZED += "tests/calls/test_errors_of_arrays.py tests/calls/test_errors_of_options.py".split()
# What several threads do.
THREADED = "tests/process/test_numbers_of_threads.py tests/process/test_threads.py tests/process/test_forks.py".split()
THREADED += ["tests/process/test_busy_machine.py", "tests/packaging/test_cimport.py"]
# They count threads or time them, or replace OpenMP's functions, which the sanitizer does too.
NOT_THREADED = "automatic_choice or region or taken_as_given or stays_on_one_thread or releases_the_gil"
# Ten seconds for each there, and beside busy processes: left to --full. Others call the same with as many threads.
LONG_THREADED = "do_not_depend_on_the_number_of_threads"
APT_GET = ["apt-get", "-q", "-oAcquire::http::Timeout=20", "-oAcquire::https::Timeout=20"]

# The Debian package that has it.
PACKAGES = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "apt-get": "apt",
    "clang": "clang",
    "dpkg-deb": "dpkg",
    "gcc": "gcc",
    "libasan.so": "gcc",
    "libgomp.so.1": "libgomp1",
    "libomp.so.5": "libomp-dev",
    "libtsan.so": "gcc",
    "libubsan.so": "gcc",
    "omp.h": "libomp-dev",
    "qemu-aarch64": "qemu-user",
    "qemu-x86_64": "qemu-user",
    "valgrind": "valgrind",
}

CONFIG = """
import json
import fastce
print(json.dumps([fastce.show_config(mode="dicts"), open("/proc/self/maps").read()]))
"""


# `row_loss(address, classes, label)` of the extension, which trusts what it is given.
ROW_LOSS = """
import ctypes
import numpy as np
from fastce._kernels import __pyx_capi__ as exported
capsule = exported["row_loss_f64"]
name, pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
kind = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int64)
row_loss = kind(pointer(capsule, name(capsule)))
"""
ONE_BEYOND = ROW_LOSS + "x = np.zeros(1000); row_loss(x.ctypes.data, 1001, 0)"
MISALIGNED = ROW_LOSS + "x = np.zeros(1000); row_loss(x.ctypes.data + 1, 999, 0)"
UNINITIALISED = ROW_LOSS + "x = np.empty(1000); row_loss(x.ctypes.data, 1000, 0)"

# Every function, over shapes and memory orders. Few tests run under valgrind, which takes fifty times as long.
EACH_CALL = """
import sys
import numpy as np
sys.path.insert(0, "tests")
from calling import CASES, DTYPES, SHAPES
for case in CASES:
    for shape, dtype in [(shape, dtype) for shape in SHAPES for dtype in DTYPES]:
        arguments = case.make(shape, dtype)
        case(arguments)
        case({name: np.asfortranarray(value) for name, value in arguments.items()}, num_threads=2)
"""

# Two callers that write the same array.
SAME_OUT = """
import threading
import numpy as np
import fastce
x, labels, out = np.zeros((1000, 100)), np.zeros(1000, int), np.empty((1000, 100))
def call():
    for _ in range(5):
        fastce.cross_entropy_with_grad(x, labels, out=out, num_threads=1)
threads = [threading.Thread(target=call) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""

# Functions that OpenMP's threads run. The right one is silent only if the sanitizer knows how OpenMP's threads wait for
# each other.
OPENMP_RACE = """
int shared;
void wrong(void) {
    #pragma omp parallel num_threads(2)
    for (int i = 0; i < 1000; i++) shared++;
}
void right(void) {
    int own[64] = {0};
    for (int times = 0; times < 100; times++) {
        #pragma omp parallel for schedule(dynamic, 1) num_threads(2)
        for (int i = 0; i < 64; i++) own[i]++;
        for (int i = 0; i < 64; i++) shared += own[i];
    }
}
"""

BUSY = "while True: pass"
# The part of its time that a process computes.
SHARE = """
import time
start = time.perf_counter(), time.process_time()
while time.perf_counter() < start[0] + 2: pass
print((time.process_time() - start[1]) / (time.perf_counter() - start[0]))
"""


class Skip(Exception):
    """The cell cannot run here."""


class Failed(Exception):
    """The cell ran and found something."""


@dataclass
class Cell:
    name: str
    about: str
    needs: tuple[str, ...]
    function: Callable[[Run], str]

    def missing(self) -> list[str]:
        return [what for what in self.needs if not found(what)]


CELLS: dict[str, Cell] = {}


def cell(name: str, about: str, needs: str) -> Callable[[Callable[[Run], str]], None]:
    def add(function: Callable[[Run], str]) -> None:
        CELLS[name] = Cell(name, about, tuple(needs.split()), function)

    return add


def found(what: str) -> Path | None:
    """Where a command is, or a library that gcc finds, or a header that came with this clang."""
    if what.endswith(".h"):
        question = ["clang", f"-print-file-name=include/{what}"]
    elif ".so" in what:
        question = ["gcc", f"-print-file-name={what}"]
    else:
        return Path(path) if (path := shutil.which(what)) else None
    if not shutil.which(question[0]):
        return None
    path = subprocess.run(question, capture_output=True, text=True).stdout.strip()
    return Path(path).resolve() if os.path.isabs(path) else None


def environment(**extra: object) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not DROPPED.match(name)}
    return kept | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | {name: str(value) for name, value in extra.items()}


def copy_checkout(to: Path) -> Path:
    """The files that are built and tested, without what was built in place."""
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", ".*_cache", ".hypothesis", ".benchmarks")
    for name in ("fastce", "tests", "bench", ".docs"):
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, to / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(CHECKOUT / name, to / name)
    return to


def once(method: Callable[..., Path]) -> Callable[..., Path]:
    """Cells that need the same thing share it; if it cannot be made, each of them says so."""
    made: dict[tuple[object, ...], Path | Exception] = {}
    lock = threading.Lock()
    locks: dict[tuple[object, ...], threading.Lock] = {}

    @functools.wraps(method)
    def shared(self: Run, *arguments: object) -> Path:
        with lock:
            own = locks.setdefault(arguments, threading.Lock())
        with own:
            if arguments not in made:
                try:
                    made[arguments] = method(self, *arguments)
                except (Skip, Failed) as error:
                    made[arguments] = error
        if isinstance(result := made[arguments], Exception):
            raise result
        return result

    return shared


class Run:
    """One cell at work: its folder, its log, and what cells are made of."""

    def __init__(self, name: str, work: Path, full: bool) -> None:
        self.name, self.work, self.full = name, work, full
        self.folder = work / name
        self.folder.mkdir(parents=True)
        self.log = self.folder / "log"

    def call(self, command: list[object], *, what: str, error: type[Exception] = Failed, **options: object) -> str:
        """Output of a command that must succeed, or `error` saying `what` did not."""
        command = [str(part) for part in command]
        with self.log.open("a") as log:
            log.write(f"\n+ {shlex.join(command)}\n")
            log.flush()
            start = log.tell()
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=TIME_LIMIT * (10 if self.full else 1),
                    **{"env": environment(), "cwd": self.folder} | options,
                )
            except subprocess.TimeoutExpired as expired:
                raise Failed(f"{what}: no end after {expired.timeout} s") from None
        if done.returncode != 0:
            raise error(f"{what}: {ending(done.returncode)}")
        return self.log.read_bytes()[start:].decode(errors="replace")

    @once
    def dependencies(self) -> Path:
        """A fresh virtual environment with what building and testing need."""
        folder = self.work / "dependencies"
        self.call([sys.executable, "-m", "venv", folder], what="venv")
        wanted = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"], *TEST_DEPENDENCIES]
        self.call([folder / "bin/python", "-m", "pip", "install", "-q", *wanted], what="pip install")
        return folder

    @once
    def wheel(self, name: str) -> Path:
        """fastce as BUILDS says."""
        return self.build(name, **BUILDS[name])

    def build(self, name: str, **variables: object) -> Path:
        """The wheel that is made under these environment variables, without a warning."""
        source = copy_checkout(self.work / "build" / name)
        pip = [self.dependencies() / "bin/python", "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation"]
        variables["CFLAGS"] = f"-Wall -Wextra {variables.get('CFLAGS', '')}"
        what = f"the {name} build"
        said = self.call([*pip, "-w", source, source], what=what, env=environment(LC_ALL="C", **variables))
        warnings = [line for line in WARNING.findall(said) if not CYTHONS_OWN.search(line)]
        if warnings and "-fsanitize" not in variables["CFLAGS"]:
            raise Failed(f"{what}: {len(warnings)} warnings, the first is {warnings[0]}")
        return next(source.glob("*.whl"))

    def sanitized(self, compiler: str, sanitizers: str) -> Path:
        """The wheel with these sanitizers, at -O1 and with line numbers: faster to build, and reports say more.

        setup.py tries OpenMP in a process without the sanitizer, where that cannot be loaded. So setup.py is told that
        there is none, and the compiler is given the option all the same."""
        script = self.folder / compiler
        script.write_text(f'#!/bin/bash\nset -- "${{@/#-O3/-O1}}"\nexec {shutil.which(compiler)} "${{@/#-g0/-g1}}"\n')
        script.chmod(0o755)
        flags = f"-fopenmp -fsanitize={sanitizers} -fno-omit-frame-pointer"
        return self.build(self.name, CC=script, CFLAGS=flags, LDFLAGS=flags, FASTCE_OPENMP=0)

    def reports(
        self, command: list[object], text: str, what: str, env: dict[str, str], log: Path | None = None
    ) -> None:
        """The control: a mistake made on purpose is reported. Else nothing would be shown by tests that pass."""
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=self.folder, timeout=TIME_LIMIT)
        said = done.stdout + done.stderr + (log.read_text() if log else "")
        with self.log.open("a") as own:
            own.write(f"\n+ control: {what}\n{said}")
        if not re.search(text, said, re.DOTALL):
            raise Failed(f"{what} is not reported: {ending(done.returncode)}")

    def python(self, wheel: Path, emulator: list[object] | None = None) -> Path:
        """The interpreter of a fresh virtual environment that has the wheel, run by the emulator if there is one.

        The emulator stands in sys.executable too: interpreters that the tests start are emulated like theirs."""
        folder = self.folder / "venv"
        self.call([sys.executable, "-m", "venv", "--without-pip", folder], what="venv")
        site = folder / f"lib/python{VERSION}/site-packages"
        shared = self.dependencies() / f"lib/python{VERSION}/site-packages"
        (site / "dependencies.pth").write_text(f"{shared}\n")
        unpack(wheel, site)
        python = folder / "bin/python"
        if emulator:
            real = python.resolve()
            python.unlink()
            write_emulated(python, emulator, real)
        return python

    def expect(self, python: Path, env: dict[str, str], **expected: object) -> None:
        """What show_config says, compiler by its beginning; openmp is whether, runtime which library."""
        said = self.call([python, "-P", "-c", CONFIG], what="import fastce", env=env)
        config, libraries = json.loads(said.splitlines()[-1])
        seen = {
            "compiler": config["compiler"].split()[0],
            "isa_available": tuple(config["isa_available"]),
            "isa": config["isa"],
            "openmp": config["openmp"] is not None,
            "runtimes": set(re.findall(r"\blibg?omp(?=[-.\d]*\.so)", libraries)),
        }
        for name, value in expected.items():
            if seen[name] != value:
                raise Failed(f"{name} is {seen[name]!r}, expected {value!r}")

    def test(
        self, python: Path, selection: list[str], env: dict[str, str] | None = None, under: list[object] | None = None
    ) -> str:
        """Runs these tests, or all when that is asked for; gives pytest's closing line. `under` is the command that
        they run under, which few of the tests are made for, so it runs these only."""
        checkout = self.folder / "checkout"
        if not checkout.exists():
            copy_checkout(checkout)
        chosen = ["tests"] if self.full and under is None else selection
        # An in-tree folder would be imported in place of what is installed: -P keeps it off the path.
        command = [*(under or []), python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
        said = self.call(command, what="tests", cwd=checkout, env=env or environment())
        return said.strip().splitlines()[-1]


def ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    return f"killed by {signal.Signals(-status).name}"


def unpack(wheel: Path, site: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


def write_emulated(python: Path, emulator: list[object], real: Path) -> None:
    """A command that is Python under an emulator, and which Python takes for its own executable."""
    words = shlex.join(str(word) for word in emulator)
    python.write_text(f'#!/bin/sh\nexec {words} -0 "$0" {shlex.quote(str(real))} "$@"\n')
    python.chmod(0o755)


# --- compilers and OpenMP runtimes ------------------------------------------------------------------------------------


@cell("gcc", "gcc on libgomp", "gcc")
def gcc(run: Run) -> str:
    python = run.python(run.wheel("gcc"))
    run.expect(python, environment(), compiler="gcc", openmp=True, runtimes={"libgomp"})
    return run.test(python, NATIVE)


@cell("gcc-serial", "gcc without OpenMP", "gcc")
def gcc_serial(run: Run) -> str:
    python = run.python(run.wheel("gcc-serial"))
    run.expect(python, environment(), compiler="gcc", openmp=False, runtimes=set())
    return run.test(python, NATIVE)


@cell("gcc-libomp", "gcc on LLVM's libomp", "gcc libomp.so.5")
def gcc_libomp(run: Run) -> str:
    python = run.python(run.wheel("gcc"))
    (run.folder / "libgomp.so.1").symlink_to(found("libomp.so.5"))
    path = os.pathsep.join(filter(None, [str(run.folder), os.environ.get("LD_LIBRARY_PATH")]))
    env = environment(LD_LIBRARY_PATH=path)
    run.expect(python, env, compiler="gcc", openmp=True, runtimes={"libomp"})
    return run.test(python, NATIVE, env)


@cell("clang", "clang on libomp", "clang omp.h")
def clang(run: Run) -> str:
    python = run.python(run.wheel("clang"))
    run.expect(python, environment(), compiler="clang", openmp=True, runtimes={"libomp"})
    return run.test(python, NATIVE)


@cell("clang-libgomp", "clang on libomp, with libgomp in the process", "gcc clang omp.h libgomp.so.1")
def clang_libgomp(run: Run) -> str:
    python = run.python(run.wheel("clang"))
    env = environment(LD_PRELOAD=found("libgomp.so.1"))
    run.expect(python, env, compiler="clang", openmp=True, runtimes={"libgomp", "libomp"})
    return run.test(python, NATIVE, env)


# --- processors -------------------------------------------------------------------------------------------------------


def emulated_x86(run: Run, processor: str, available: tuple[str, ...]) -> str:
    if platform.machine() != "x86_64":
        raise Skip(f"this machine is {platform.machine()}: neither its Python nor its NumPy are for x86-64")
    emulator = ["qemu-x86_64", "-cpu", processor]
    lacks_what_it_should(run, emulator, available)
    python = run.python(run.wheel("gcc"), emulator)
    run.expect(python, environment(), isa_available=available, isa=available[0])
    return run.test(python, EMULATED)


def lacks_what_it_should(run: Run, emulator: list[object], available: tuple[str, ...]) -> None:
    """The emulator stops at an instruction that its processor lacks: else nothing would be shown by tests that pass."""
    for isa, instruction in (("avx2", "vpaddd %%ymm0, %%ymm0, %%ymm0"), ("avx512", "vpaddd %%zmm0, %%zmm0, %%zmm0")):
        source = run.folder / f"{isa}.c"
        source.write_text(f'int main(void) {{ __asm__ volatile("{instruction}" ::: "xmm0"); return 0; }}\n')
        run.call(["gcc", source, "-o", source.with_suffix("")], what="control program")
        status = subprocess.run([*emulator, source.with_suffix("")], capture_output=True).returncode
        if status != (0 if isa in available else -signal.SIGILL):
            raise Failed(f"{shlex.join(emulator)} at an {isa} instruction: {ending(status)}")


@cell("nehalem", "an emulated x86-64 without AVX", "gcc qemu-x86_64")
def nehalem(run: Run) -> str:
    return emulated_x86(run, "Nehalem", ("baseline",))


@cell("haswell", "an emulated x86-64 with AVX2 and without AVX-512", "gcc qemu-x86_64")
def haswell(run: Run) -> str:
    # Less what QEMU does not emulate and says so on every start.
    return emulated_x86(run, "Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid", ("avx2", "baseline"))


@cell("aarch64", "cross-built for an emulated aarch64", "aarch64-linux-gnu-gcc qemu-aarch64 apt-get dpkg-deb")
def aarch64(run: Run) -> str:
    name = f"python{VERSION}"
    packages = [f"{name}-minimal", f"lib{name}-stdlib", f"lib{name}-dev", "libgomp1", "libstdc++6"]
    root = debian_root(run, "arm64", packages)
    # How CPython itself is cross-built: the build's settings are read from the target's.
    data = next((root / f"usr/lib/python{VERSION}").glob("_sysconfigdata__aarch64-linux-gnu.py"))
    settings = run.folder / "settings"
    settings.mkdir()
    shutil.copy2(data, settings)
    wheel = run.build(
        "aarch64",
        FASTCE_OPENMP=1,
        CFLAGS=f"-I{root}/usr/include/python{VERSION} -isystem {root}/usr/include",
        PYTHONPATH=settings,
        _PYTHON_SYSCONFIGDATA_NAME=data.stem,
        _PYTHON_HOST_PLATFORM="linux-aarch64",
    )
    folder = run.folder / "venv"
    site = folder / f"lib/python{VERSION}/site-packages"
    platforms = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(18, 36))]
    wanted = [*FEW_DEPENDENCIES, *PROJECT["project"]["dependencies"]]
    pip = [run.dependencies() / "bin/python", "-m", "pip", "install", "-q", "--target", site, "--only-binary=:all:"]
    pip += [f"--platform={name}" for name in platforms]
    run.call([*pip, *wanted], what="pip install for aarch64", error=Skip)
    unpack(wheel, site)
    (folder / "bin").mkdir()
    (folder / "pyvenv.cfg").write_text(f"home = {root}/usr/bin\n")
    python = folder / "bin/python"
    # Cortex-A53: the first generation, which has NEON and none of its successors.
    write_emulated(python, ["qemu-aarch64", "-cpu", "cortex-a53", "-L", root], root / f"usr/bin/python{VERSION}")
    run.expect(python, environment(), compiler="gcc", openmp=True, isa_available=("baseline",), isa="baseline")
    return run.test(python, EMULATED)


def debian_root(run: Run, architecture: str, packages: list[str]) -> Path:
    """The packages and what they depend on, unpacked into a folder: nothing is installed, no root rights are needed."""
    root, apt = run.folder / "root", run.folder / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": 1,
    }
    get = [*APT_GET, *(f"-o{name}={value}" for name, value in options.items())]
    run.call([*get, "update"], what="apt-get update", error=Skip)
    get += ["install", "--download-only", "--yes", "--no-install-recommends"]
    run.call([*get, *packages], what=f"apt-get install of {architecture} {' '.join(packages)}", error=Skip)
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        run.call(["dpkg-deb", "-x", package, root], what="dpkg-deb")
    return root


# --- sanitizers and valgrind ------------------------------------------------------------------------------------------


@cell("asan", "sanitizers of addresses and undefined behaviour", "gcc libasan.so libubsan.so clang omp.h")
def asan(run: Run) -> str:
    # clang's code calls gcc's sanitizers by the same names. It checks masked loads too, which gcc does not.
    wheel = run.sanitized("clang", "address,undefined -fno-sanitize-recover=undefined")
    python = run.python(wheel)
    env = environment(
        LD_PRELOAD=f"{found('libasan.so')} {found('libubsan.so')}",
        # CPython does not free all that it allocates. A test asks for more memory than there is.
        ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1:malloc_context_size=5",
        UBSAN_OPTIONS="print_stacktrace=1",
        PYTHONMALLOC="malloc",
    )
    run.expect(python, env, compiler="clang", openmp=True)
    run.reports([python, "-P", "-c", ONE_BEYOND], "heap-buffer-overflow.*_kernels", "a read beyond an array", env)
    run.reports([python, "-P", "-c", MISALIGNED], "runtime error: .*misaligned", "a misaligned read", env)
    # pytest keeps what a process writes before it is ended by a sanitizer.
    reports = run.folder / "reports"
    reports.mkdir()
    env = env | {name: f"{env[name]}:log_path={reports / name}" for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS")}
    selection = [*SANITIZED, *NATIVE[1:]] if run.full else SANITIZED
    try:
        said = run.test(python, selection, env, under=[])
        config = run.call([python, "-P", "-c", CONFIG], what="import fastce", env=env)
        for isa in json.loads(config.splitlines()[-1])[0]["isa_available"]:
            own = env | {"FASTCE_ISA": isa}
            run.call([python, "-P", "-c", EACH_CALL], what=f"calls with {isa}", env=own, cwd=run.folder / "checkout")
            run.test(python, SANITIZED[:2], own, under=[])
    finally:
        found_here = sorted(reports.iterdir())
        with run.log.open("a") as log:
            log.writelines(report.read_text(errors="replace") for report in found_here)
    if found_here:
        raise Failed(f"{len(found_here)} reports, the first is {found_here[0]}")
    return said


@cell("tsan", "clang's thread sanitizer, with archer for LLVM's libomp", "gcc libtsan.so clang omp.h libomp.so.5")
def tsan(run: Run) -> str:
    # gcc's sanitizer, which code from clang calls by the same names: LLVM 14's own crashes when it is loaded first.
    sanitizer, archer = found("libtsan.so"), found("libomp.so.5").with_name("libarcher.so")
    if not archer.exists():
        raise Skip(f"there is no {archer}")
    python = run.python(run.sanitized("clang", "thread"))
    # The sanitizer does not see reads and writes of more than 16 bytes. The tests drop FASTCE_ISA for what they start.
    site = next(run.folder.glob("venv/lib/python*/site-packages"))
    (site / "baseline.pth").write_text("import os; os.environ['FASTCE_ISA'] = 'baseline'\n")
    options = "ignore_noninstrumented_modules=1:die_after_fork=0"
    env = environment(LD_PRELOAD=sanitizer, OMP_TOOL_LIBRARIES=archer, TSAN_OPTIONS=options)
    run.expect(python, env, compiler="clang", openmp=True, isa="baseline")
    race = run.folder / "race.so"
    race.with_suffix(".c").write_text(OPENMP_RACE)
    flags = "-g1 -O1 -fopenmp -fsanitize=thread -shared -fPIC".split()
    run.call(["clang", *flags, race.with_suffix(".c"), "-o", race], what="control program")
    calls = f"import ctypes; ctypes.CDLL({str(race)!r})"
    run.call([python, "-c", f"{calls}.right()"], what="OpenMP without a race", env=env)
    run.reports([python, "-c", f"{calls}.wrong()"], "data race.*race.so", "a race of OpenMP's threads", env)
    run.reports([python, "-P", "-c", SAME_OUT], "data race.*_kernels", "a race of two callers", env)
    # Each process writes its own file. What a test expects to fail could hide a report.
    env["TSAN_OPTIONS"] = f"{options}:log_path={run.folder / 'races'}"
    left = NOT_THREADED if run.full else f"{NOT_THREADED} or {LONG_THREADED}"
    said = run.test(python, [*THREADED, "-k", f"not ({left})"], env, under=[])
    if reports := sorted(run.folder.glob("races.*")):
        raise Failed(f"{len(reports)} processes with races, the first is in {reports[0]}")
    return said


@cell("valgrind", "reads of uninitialised memory by the baseline, seen by valgrind", "gcc valgrind")
def valgrind(run: Run) -> str:
    python = run.python(run.wheel("gcc"))
    env = environment(FASTCE_ISA="baseline", PYTHONMALLOC="malloc", OMP_NUM_THREADS=1)
    run.expect(python, env, compiler="gcc", isa="baseline")
    log = run.folder / "control.log"
    under = ["valgrind", "--leak-check=no", "--error-limit=no", "--num-callers=40"]
    control = [*under, f"--log-file={log}", python, "-P", "-c", UNINITIALISED]
    run.reports(control, r"uninitialised\b.*_kernels", "an uninitialised read", env, log)
    if not of_the_extension(log):
        raise Failed("an uninitialised read is not told from what valgrind says about Python")
    calls, tests = run.folder / "calls.log", run.folder / "tests.log"
    said = run.test(python, ["tests/numbers/test_by_hand.py"], env, under=[*under, f"--log-file={tests}"])
    checkout = run.folder / "checkout"
    run.call([*under, f"--log-file={calls}", python, "-P", "-c", EACH_CALL], what="calls", env=env, cwd=checkout)
    if errors := [report for log in (calls, tests) for report in of_the_extension(log)]:
        raise Failed(f"{len(errors)} errors, the first is\n{errors[0]}")
    return said


def of_the_extension(log: Path) -> list[str]:
    """valgrind's reports in which the extension occurs: those about Python and NumPy are none of fastce."""
    text = re.sub(r"^==\d+== ?", "", log.read_text(), flags=re.MULTILINE)
    return [report for report in text.split("\n\n") if "_kernels." in report and " at 0x" in report]


# --- other processes, other interpreters ------------------------------------------------------------------------------


@cell("busy", "a busy process for each processor", "gcc")
def busy(run: Run) -> str:
    python = run.python(run.wheel("gcc"))
    run.expect(python, environment(), compiler="gcc", openmp=True)
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in os.sched_getaffinity(0)]
    try:
        share = float(run.call([python, "-c", SHARE], what="control program"))
        if share > 0.8:
            raise Failed(f"a process computes in {share:.0%} of its time, so the machine is not busy")
        said = run.test(python, ["tests/process", *([] if run.full else ["-k", f"not {LONG_THREADED}"])], under=[])
        if any(other.poll() is not None for other in others):
            raise Failed("a busy process ended before the tests")
    finally:
        for other in others:
            other.kill()
            other.wait()
    return said


@cell("freethreaded", "Python without the GIL", "gcc")
def freethreaded(run: Run) -> str:
    names = [f"python3.{minor}t" for minor in range(16, 12, -1)]
    pyenv = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/3.*t/bin/python"))
    there = [path for name in names if (path := shutil.which(name))] + pyenv[::-1]
    if not there:
        raise Skip(f"there is none of {', '.join(names)}, nor one in pyenv")
    python = run.folder / "venv/bin/python"
    run.call([there[0], "-m", "venv", run.folder / "venv"], what="venv")
    wanted = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"], *FEW_DEPENDENCIES]
    pip = [python, "-m", "pip", "install", "-q"]
    run.call([*pip, *wanted], what="pip install for free-threaded Python", error=Skip)
    source = copy_checkout(run.folder / "build")
    run.call([*pip, "--no-deps", "--no-build-isolation", source], what="build", env=environment(**BUILDS["gcc"]))
    # An extension that does not say that it needs no GIL turns it on.
    enabled = "import sys, fastce; print(sys._is_gil_enabled())"
    if run.call([python, "-P", "-c", enabled], what="import fastce", env=environment()).split()[-1] != "False":
        raise Failed("the GIL is on once fastce is imported")
    return run.test(python, NATIVE)


# --- command line -----------------------------------------------------------------------------------------------------


def install(cells: list[Cell]) -> None:
    """Missing packages; where that fails, the cells that lack them will say so."""
    packages = sorted({PACKAGES[command] for one in cells for command in one.missing()})
    if not packages:
        return
    env = environment(DEBIAN_FRONTEND="noninteractive")
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        try:
            subprocess.run([*APT_GET, *command], env=env, stdout=subprocess.DEVNULL, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"apt-get {shlex.join(command)} failed: {error}", flush=True)
            return


def run_cell(one: Cell, work: Path, full: bool) -> tuple[str, str]:
    """What became of it, and the reason."""
    run, start = Run(one.name, work, full), time.monotonic()
    print(f"{one.name} ...", flush=True)
    try:
        if missing := one.missing():
            packages = " ".join(sorted({PACKAGES[command] for command in missing}))
            raise Skip(f"there is no {', '.join(missing)}; --install as root, or apt-get install {packages}")
        result = "passed", one.function(run)
    except Skip as reason:
        result = "skipped", str(reason)
    except Exception as reason:  # Failed, or a mistake of this script
        result = "failed", str(reason)
        with run.log.open("a") as log:
            if not isinstance(reason, Failed):
                traceback.print_exc(file=log)
        lines = run.log.read_text(errors="replace").splitlines()
        print(f"\n--- {one.name}: the end of {run.log}", *lines[-80:], "---", sep="\n", flush=True)
    print(f"{one.name} {result[0]} after {time.monotonic() - start:.0f} s", flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"of {', '.join(CELLS)}; default: all of them")
    parser.add_argument("--list", action="store_true", help="print the cells and what they lack here")
    parser.add_argument("--full", action="store_true", help="run all the tests in each cell")
    parser.add_argument("--install", action="store_true", help="apt-get install what is missing")
    parser.add_argument("--jobs", "-j", type=int, default=1, metavar="N", help="cells at a time")
    parser.add_argument("--work", type=Path, help="new folder for builds and logs (default: a temporary one)")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.cells) - set(CELLS)):
        parser.error(f"no cell {', '.join(unknown)}; there are {', '.join(CELLS)}")
    chosen = [CELLS[name] for name in arguments.cells or CELLS]
    if arguments.list:
        for one in chosen:
            lacks = f" (lacks {', '.join(one.missing())})" if one.missing() else ""
            print(f"{one.name:15} {one.about}{lacks}")
        return 0
    if arguments.install:
        install(chosen)
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="fastce-matrix-"))).resolve()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda one: run_cell(one, work, arguments.full), chosen))
    print()
    for one, (what, reason) in zip(chosen, results, strict=True):
        print(f"{one.name:15} {what:8} {reason}")
    if any(what == "failed" for what, _ in results):
        print(f"logs are in {work}")
        return 1
    if arguments.work is None:
        shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
