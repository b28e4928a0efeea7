"""Builds fastce with one compiler after another, and runs its tests on processors that this machine does not have.

    python .ci/matrix.py                      every cell that can run here
    python .ci/matrix.py --list               what there is, and what each cell lacks on this machine
    python .ci/matrix.py clang aarch64        these cells
    python .ci/matrix.py --install ...        install what is missing first (Debian, as root)

A cell builds the checkout with -Wall -Wextra, and any warning fails it, whether it comes from the headers or from the C
that Cython writes; checks that compiler, OpenMP runtime and instruction set are those it is about; and runs a part of
the tests (--full: all of them) in a virtual environment of its own. It is skipped, with the reason, when what it needs
is not there. The exit status is 1 when a cell failed. Needs Linux, Python with venv, and network for pip.

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
APT_GET = ["apt-get", "-q", "-oAcquire::http::Timeout=20", "-oAcquire::https::Timeout=20"]

# The Debian package that has it.
PACKAGES = {
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "apt-get": "apt",
    "clang": "clang",
    "dpkg-deb": "dpkg",
    "gcc": "gcc",
    "libgomp.so.1": "libgomp1",
    "libomp.so.5": "libomp-dev",
    "omp.h": "libomp-dev",
    "qemu-aarch64": "qemu-user",
    "qemu-x86_64": "qemu-user",
}

CONFIG = """
import json
import fastce
print(json.dumps([fastce.show_config(mode="dicts"), open("/proc/self/maps").read()]))
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
        wanted = [*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]]
        wanted += PROJECT["project"]["optional-dependencies"]["test"]
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
        if warnings := [line for line in WARNING.findall(said) if not CYTHONS_OWN.search(line)]:
            raise Failed(f"{what}: {len(warnings)} warnings, the first is {warnings[0]}")
        return next(source.glob("*.whl"))

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

    def test(self, python: Path, selection: list[str], env: dict[str, str] | None = None) -> str:
        """Runs these tests, or all when that is asked for; gives pytest's closing line."""
        checkout = copy_checkout(self.folder / "checkout")
        chosen = ["tests"] if self.full else selection
        # An in-tree folder would be imported in place of what is installed: -P keeps it off the path.
        command = [python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
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
    wanted = [r for r in PROJECT["project"]["optional-dependencies"]["test"] if re.match("pytest|hypothesis|mpmath", r)]
    wanted += PROJECT["project"]["dependencies"]
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
