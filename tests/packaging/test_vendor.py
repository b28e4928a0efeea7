"""Vendoring: the installed folder is copied under another name into a package. The package is built by setuptools and
by meson-python with the files that the README shows, as they stand there, installed, and used beside the installed
fastce."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path
from typing import Any

import pytest
from installed import is_installed

import fastce

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = Path(fastce.__file__).resolve().parent
CE = Path("hostpkg", "_vendor", "ce")
TIME_LIMIT = 300  # seconds; a build takes about 25

README = (TESTS.parent / "README.md").read_text(encoding="utf-8")


def shown(language: str) -> str:
    """The only block of the README in that language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return block


SCRIPTS = {"setuptools": ("setup.py", shown("py")), "meson": ("meson.build", shown("meson"))}
OPTIONS = {"setuptools": [], "meson": ["-Csetup-args=-Doptimization=1"]}  # see quick_compiler
BACKEND = {"setuptools": "setuptools", "meson": "mesonpy"}

pytestmark = pytest.mark.slow


def run(*command: str, cwd: Path, **environment: str) -> str:
    inherited = {name: v for name, v in os.environ.items() if name not in ("FASTCE_ISA", "PYTHONPATH")}
    inherited["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    done = subprocess.run(
        command, cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=TIME_LIMIT
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def quick_compiler(folder: Path) -> str:
    """A compiler that optimises less, which halves the time of the build. No test here depends on the speed."""
    script = folder / "quick-cc"
    script.write_text('#!/bin/sh\nexec cc "$@" -O1\n')
    script.chmod(0o755)
    return str(script)


def copy_folder(to: Path) -> None:
    shutil.copytree(PACKAGE, to, ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.c"))


@pytest.fixture(scope="module", params=list(SCRIPTS))
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a host is installed, built by each backend."""
    backend: str = request.param
    for module in ("pip", BACKEND[backend]):
        if not is_installed(module):
            pytest.skip(f"{module} is not installed")
    if backend == "meson" and not shutil.which("ninja", path=sysconfig.get_path("scripts") + os.pathsep + os.defpath):
        pytest.skip("ninja is not installed")
    host = tmp_path_factory.mktemp(backend)
    copy_folder(host / "src" / CE)
    for folder in (CE.parent, CE.parent.parent):
        (host / "src" / folder / "__init__.py").touch()
    name, script = SCRIPTS[backend]
    (pyproject,) = re.findall(r"^# .*; pyproject\.toml: (build-system = .*)$", script, flags=re.MULTILINE)
    (host / "src" / name).write_text(script)
    (host / "src" / "pyproject.toml").write_text(pyproject)
    install = "-m pip -q install --no-build-isolation --no-deps --no-index --disable-pip-version-check --target".split()
    environment = {"CC": quick_compiler(host)} if backend == "setuptools" and os.name == "posix" else {}
    run(sys.executable, *install, str(host / "site"), *OPTIONS[backend], "./src", cwd=host, **environment)
    return host / "site"


IMPORTS = "import json, numpy as np, fastce, hostpkg._vendor.ce as ce\n"


def python(site: Path, script: str, *, imports: str = IMPORTS, **environment: str) -> Any:
    """What a script reports that can import the host and the installed fastce. It runs in a folder without either."""
    path = os.pathsep.join([str(site), str(PACKAGE.parent)])
    code = imports + textwrap.dedent(script)
    out = run(sys.executable, "-P", "-c", code, cwd=site.parent, PYTHONPATH=path, **environment)
    return json.loads(out.splitlines()[-1])


def test_the_installed_copy_is_the_same_folder(site: Path) -> None:
    mine = {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*") if path.is_file()}
    theirs = {path.relative_to(site / CE): path for path in (site / CE).rglob("*") if path.is_file()}
    sources = [name for name in mine if "__pycache__" not in name.parts and name.suffix not in (".so", ".pyd", ".c")]
    assert {"LICENSE", "py.typed", "_build.py", "_kernels.pyx"} <= set(map(str, sources))
    for name in sources:
        assert theirs[name].read_bytes() == mine[name].read_bytes()


def test_two_copies_in_one_process_share_nothing(site: Path) -> None:
    found = python(
        site,
        """
        import json, os, sys
        import numpy as np
        import fastce

        x, labels = np.random.default_rng(5).standard_normal((300, 1000), dtype=np.float32) * 9, np.arange(300)

        def bits(package):
            loss, stats = package.cross_entropy(x, labels, return_stats=True)
            grad = package.cross_entropy_grad(x, labels, stats=stats)
            return np.concatenate([[loss], stats.row_max, stats.tail, grad.ravel()]).tobytes()

        before = bits(fastce)
        choices = fastce.show_config(mode="dicts")["isa_available"]
        os.environ["FASTCE_ISA"] = choices[-1]
        import hostpkg._vendor.ce as ce
        lowest = bits(ce)
        mine, theirs = ([name for name in sys.modules if name.startswith(p.__name__ + ".")] for p in (ce, fastce))
        shared = [a for a in mine for b in theirs if sys.modules[a] is sys.modules[b]]
        print(json.dumps({
            "close": np.allclose(np.frombuffer(lowest, np.float32), np.frombuffer(before, np.float32), rtol=1e-4),
            "unmoved": bits(fastce) == before,
            "choices": len(choices),
            "chosen": lowest != before,
            "files": [fastce._kernels.__file__, ce._kernels.__file__],
            "types": [fastce.SoftmaxStats is ce.SoftmaxStats, fastce.CrossEntropyLoss is ce.CrossEntropyLoss],
            "shared": shared,
            "modules": [len(mine), len(theirs)],
            "isa": [package.show_config(mode="dicts")["isa"] for package in (fastce, ce)] == [choices[0], choices[-1]],
            "named": [ce.__name__, ce._kernels.__name__],
            "module": ce.cross_entropy.__module__,
        }))
        """,
        imports="",
    )
    assert found["close"]
    assert found["unmoved"], "choosing the instruction set of one copy changed the other"
    assert found["chosen"] or found["choices"] == 1
    assert Path(found["files"][0]).parent == PACKAGE
    assert Path(found["files"][1]).parent == site / CE
    assert found["types"] == [False, False]
    assert found["shared"] == []
    assert min(found["modules"]) >= 4
    assert found["isa"]
    assert found["named"] == ["hostpkg._vendor.ce", "hostpkg._vendor.ce._kernels"]
    assert found["module"].startswith("hostpkg._vendor.ce")


def test_each_copy_obeys_the_environment(site: Path) -> None:
    script = 'print(json.dumps([p.show_config(mode="dicts")["isa"] for p in (fastce, ce)]))'
    for isa in fastce.show_config(mode="dicts")["isa_available"]:
        assert python(site, script, FASTCE_ISA=isa) == [isa, isa]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork does not exist on this platform")
def test_a_forked_child_uses_both(site: Path) -> None:
    """Both have used OpenMP's pool, which does not survive a fork. The alarm ends a child that hangs."""
    same = python(
        site,
        """
        import os, signal
        x, labels = np.random.default_rng(5).standard_normal((4096, 100)), np.arange(4096) % 100
        results = lambda: [p.cross_entropy_with_grad(x, labels, num_threads=2)[1].tobytes() for p in (ce, fastce)]
        before = results()
        if (pid := os.fork()) == 0:
            signal.alarm(30)
            os._exit(0 if results() == before else 1)
        print(json.dumps([os.waitpid(pid, 0)[1], results() == before]))
        """,
    )
    assert same == [0, True]


def test_integrations_work_in_the_copy(site: Path) -> None:
    loss, grad, others = python(
        site,
        """
        import sys
        from hostpkg._vendor.ce.integrations.scipy import softmax_regression
        loss, grad = softmax_regression(np.eye(2), [0, 1], 2)(np.zeros(6))
        print(json.dumps([loss, grad.tolist(), [name for name in sys.modules if name.partition(".")[0] == "fastce"]]))
        """,
        imports="import json, numpy as np\n",
    )
    assert loss == pytest.approx(0.6931471805599453)
    assert grad == [-0.25, 0.25, 0, 0.25, -0.25, 0]
    assert others == [], "the installed fastce was imported"


@pytest.mark.parametrize("file", ["numbers/test_by_hand.py", "calls/test_errors_of_arrays.py", "calls/test_layouts.py"])
def test_core_tests_pass_through_the_copy(site: Path, file: str, tmp_path: Path) -> None:
    (tmp_path / "vendored.py").write_text(
        "import sys, hostpkg._vendor.ce as ce\n"
        "for name in [name for name in sys.modules if name.startswith(ce.__name__)]:\n"
        "    sys.modules['fastce' + name.removeprefix(ce.__name__)] = sys.modules[name]\n"
    )
    path = os.pathsep.join([str(tmp_path), str(site), os.environ.get("PYTHONPATH", "")])
    options = ["-q", "-p", "vendored", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", os.devnull]
    options += ["--import-mode=importlib", "-o", f"pythonpath={TESTS}", "-W", "error", "--verbosity=0"]
    said = run(sys.executable, "-m", "pytest", *options, str(TESTS / file), cwd=tmp_path, PYTHONPATH=path)
    assert str(site / CE) in said, "the tests did not test the copy"
    assert " passed" in said


@pytest.mark.skipif(shutil.which("nm") is None or sys.platform != "linux", reason="needs binutils' nm, on Linux")
def test_the_compiled_module_exports_only_its_initialiser(site: Path) -> None:
    for module in (Path(fastce._kernels.__file__), *(site / CE).glob("_kernels*.so")):
        symbols = [line.split()[-1] for line in run("nm", "-D", "--defined-only", str(module), cwd=site).splitlines()]
        markers = {"_init", "_fini", "_edata", "_end", "__bss_start"}  # of some linkers, in every shared object
        assert set(symbols) - markers == {"PyInit__kernels"}


def test_the_package_never_imports_itself_by_name() -> None:
    files = [path for pattern in ("*.py", "*.pyi") for path in PACKAGE.rglob(pattern)]
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not [name for name in names if name.partition(".")[0] == "fastce"], path
