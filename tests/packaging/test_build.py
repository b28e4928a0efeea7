"""The build, run in temporary copies of the checkout: what it refuses and why, what it does without OpenMP, what an
sdist and an installed folder hold. The copies are built with the interpreter and the packages of the tests."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import fastce

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = {".py", ".pyi", ".pyx", ".pxd", ".h", ".inc"}
FLAG_VARIABLES = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED", "FASTCE_OPENMP", "FASTCE_ABI3")

pytestmark = pytest.mark.skipif(
    not (CHECKOUT / "setup.py").is_file(), reason="these tests build the checkout that they lie in, and there is none"
)
unix_compiler = pytest.mark.skipif(os.name != "posix", reason="names flags and compilers of POSIX systems")


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in FLAG_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """fastce/_build.py as setup.py sees it: loaded by path, outside any package."""
    spec = importlib.util.spec_from_file_location("_build", CHECKOUT / "fastce" / "_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_checkout(to: Path) -> Path:
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", ".*_cache", ".hypothesis", ".benchmarks")
    for name in ("fastce", "tests", "bench", ".docs"):
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, to / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(CHECKOUT / name, to / name)
    return to


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout for builds that are refused or that write elsewhere."""
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


def setup_py(
    folder: Path, *arguments: str, timeout: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in FLAG_VARIABLES}
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def files_in(folder: Path) -> set[str]:
    """All files below the folder, by their path from there, without Python's caches."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found}


def compiler_without_openmp(folder: Path) -> str:
    """A compiler that fails when it is asked for OpenMP, as on a machine without an OpenMP runtime."""
    script = folder / "cc-without-openmp"
    script.write_text('#!/bin/sh\nfor arg; do [ "$arg" = -fopenmp ] && exit 1; done\nexec cc "$@"\n')
    script.chmod(0o755)
    return str(script)


# --- refusals ---------------------------------------------------------------------------------------------------------


@unix_compiler
@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CFLAGS": "-O2 -Ofast"}, "CFLAGS contains -Ofast"),
        ({"LDFLAGS": "-ffast-math"}, "LDFLAGS contains -ffast-math"),
        ({"CC": "cc -funsafe-math-optimizations"}, "CC contains -funsafe-math-optimizations"),
        ({"FASTCE_OPENMP": "yes"}, "FASTCE_OPENMP is 'yes', expected 0"),
        ({"FASTCE_ABI3": "yes"}, "FASTCE_ABI3 is 'yes', expected 0"),
    ],
)
def test_build_is_refused_with_the_reason_before_anything_is_compiled(
    copy: Path, tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    out = ("--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp"))
    refused = setup_py(copy, "build_ext", *out, **environment)
    assert refused.returncode != 0
    assert reason in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "-Ofast",
        "-g -Ofast -O2",
        "--optimize=fast",
        "-ffast-math -fno-fast-math",  # gcc links crtfastmath.o in spite of the second
        "--fast-math",
        "-Wp,-ffast-math",
        "-Wl,-O1,-ffast-math",
        "-Xclang -ffast-math",
        "-Xclang=-ffast-math",
        "'-ffast-math'",
        "-O3 -funsafe-math-optimizations",
        "-ffinite-math-only",
        "-fno-signed-zeros -fno-trapping-math -fassociative-math",
        "-freciprocal-math",
        "-ffp-model=fast",
        "-ffp-model=aggressive",
        "-fp-model fast=2",
        "-fapprox-func",
        "-fno-honor-nans",
        "-fdenormal-fp-math=preserve-sign",
        "-mdaz-ftz",
        "/O2 /fp:fast",
    ],
)
def test_harmful_flags_are_found_in_every_form(
    build: ModuleType, clean_environment: pytest.MonkeyPatch, text: str
) -> None:
    clean_environment.setenv("CFLAGS", text)
    with pytest.raises(SystemExit, match="CFLAGS contains .*Remove it from CFLAGS"):
        build.check_flags("fastce")


@pytest.mark.parametrize("variable", ["CC", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED", "ARCHFLAGS", "CL"])
def test_harmful_flags_are_found_in_every_variable(
    build: ModuleType, clean_environment: pytest.MonkeyPatch, variable: str
) -> None:
    clean_environment.setenv(variable, "cc -Ofast")
    with pytest.raises(SystemExit, match=f"{variable} contains -Ofast.*Remove it from {variable}"):
        build.check_flags("fastce")


@pytest.mark.parametrize(
    "text",
    [
        "-O2 -g -Wall -fstack-protector-strong -D_FORTIFY_SOURCE=2",
        "-march=native -mtune=native",
        "-fno-fast-math -fno-unsafe-math-optimizations -fno-finite-math-only -fno-associative-math",
        "-fno-math-errno -fno-trapping-math -ffp-contract=fast -ffp-model=precise -fdenormal-fp-math=ieee",
        "-I/opt/no-ffast-math/include -L/usr/lib/x-Ofast",
        "/O2 /fp:precise",
    ],
)
def test_harmless_flags_pass(build: ModuleType, clean_environment: pytest.MonkeyPatch, text: str) -> None:
    for variable in ("CFLAGS", "LDFLAGS"):
        clean_environment.setenv(variable, text)
    build.check_flags("fastce")


def test_harmful_flags_from_the_interpreters_own_build_are_found(
    build: ModuleType, clean_environment: pytest.MonkeyPatch
) -> None:
    class Compiler:
        compiler_so = ["cc", "-O2", "-ffast-math"]
        linker_so = ["cc", "-shared"]

    with pytest.raises(SystemExit, match="compiler_so contains -ffast-math"):
        build.check_flags("fastce", Compiler())


def test_the_flags_of_fastce_pass_its_check(build: ModuleType, clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("CFLAGS", " ".join(build.UNIX_FLAGS + build.MSVC_FLAGS))
    build.check_flags("fastce")


# --- OpenMP -----------------------------------------------------------------------------------------------------------


@unix_compiler
def test_missing_openmp_is_an_error_if_it_was_required(copy: Path, tmp_path: Path) -> None:
    out = ("--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp"))
    refused = setup_py(copy, "build_ext", *out, CC=compiler_without_openmp(tmp_path), FASTCE_OPENMP="1")
    assert refused.returncode != 0
    assert "no working OpenMP found" in refused.stderr
    assert "FASTCE_OPENMP=1 insists on it" in refused.stderr
    assert not (tmp_path / "temp").exists()


@unix_compiler
def test_missing_openmp_gives_the_serial_build_and_one_message(
    build: ModuleType, clean_environment: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clean_environment.setenv("CC", compiler_without_openmp(tmp_path))
    found = build.extension("fastce")
    err = capfd.readouterr().err
    assert err.count("no working OpenMP found") == 1
    assert "building without threads" in err
    clean_environment.setenv("FASTCE_OPENMP", "0")
    asked = build.extension("fastce")
    assert capfd.readouterr().err == ""
    assert (found.extra_compile_args, found.extra_link_args) == (asked.extra_compile_args, asked.extra_link_args)
    assert "-fopenmp" not in found.extra_compile_args + found.extra_link_args


# Different ways through the package: losses of both dtypes, gradients, masked and ignored rows, a wide row.
RESULTS = """
import hashlib, json, numpy as np, fastce
digest = hashlib.sha256()
rng = np.random.default_rng(7)
for dtype in ("f4", "f8"):
    for rows, classes in ((1, 1), (5, 3), (300, 10), (65, 17), (33, 1000), (3, 50257)):
        logits = (rng.standard_normal((rows, classes)) * 6).astype(dtype)
        logits[0, -1] = -np.inf if classes > 1 else 0
        targets = rng.integers(0, max(classes - 1, 1), rows)
        targets[rows // 2] = -100 if rows > 1 else 0
        for reduction in ("mean", "none"):
            loss, grad = fastce.cross_entropy_with_grad(logits, targets, reduction=reduction, num_threads=2)
            forward, stats = fastce.cross_entropy(logits, targets, reduction=reduction, return_stats=True)
            backward = fastce.cross_entropy_grad(logits, targets, reduction=reduction, stats=stats)
            for result in (loss, grad, forward, *stats, backward):
                digest.update(np.ascontiguousarray(result).tobytes())
config = fastce.show_config(mode="dicts")
print(json.dumps([digest.hexdigest(), config["isa"], config["openmp"], config["threads"], fastce.__file__]))
"""


@pytest.mark.slow
def test_serial_build_has_no_openmp_and_gives_the_same_bits(copy: Path, tmp_path: Path) -> None:
    before = files_in(copy / "fastce")
    lib = tmp_path / "lib"
    out = ("--build-lib", str(lib), "--build-temp", str(tmp_path / "temp"))
    made = setup_py(copy, "build_py", out[0], out[1], "build_ext", *out, timeout=300, FASTCE_OPENMP="0")
    assert made.returncode == 0, made.stderr
    assert files_in(copy / "fastce") == before

    def results(**environment: str) -> list:
        run = subprocess.run(
            [sys.executable, "-P", "-c", RESULTS],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    digest, isa, _, _, installed = results()
    serial_digest, serial_isa, serial_openmp, serial_threads, serial = results(PYTHONPATH=str(lib))
    assert Path(serial).parent == lib / "fastce" != Path(installed).parent
    assert serial_openmp is None
    assert serial_threads == 1
    assert serial_isa == isa
    assert serial_digest == digest

    installed_files = files_in(lib / "fastce")
    assert {name for name in files_in(copy / "fastce") if Path(name).suffix in SOURCES} <= installed_files
    assert {"py.typed", "LICENSE"} <= installed_files
    assert not [name for name in installed_files if name.endswith((".c", ".o"))]


# --- what is built ----------------------------------------------------------------------------------------------------


def test_extension_takes_any_package_name_and_is_rebuilt_when_a_header_changes(
    build: ModuleType, clean_environment: pytest.MonkeyPatch
) -> None:
    clean_environment.setenv("FASTCE_OPENMP", "0")
    clean_environment.chdir(CHECKOUT)
    ext = build.extension("hostpkg._vendor.ce")
    assert ext.name == "hostpkg._vendor.ce._kernels"
    assert ext.sources == ["fastce/_kernels.pyx"]
    headers = {f"fastce/{name}" for name in files_in(CHECKOUT / "fastce") if Path(name).suffix in (".h", ".inc")}
    assert headers
    assert {Path(path).as_posix() for path in ext.depends} >= headers | {"fastce/_build.py"}


# Prints what setup.py passes to setuptools, instead of building.
PLAN = """
import json, sysconfig
if {free_threaded}:
    sysconfig.get_config_vars()["Py_GIL_DISABLED"] = 1
import setuptools
setuptools.setup = lambda **given: print(json.dumps([
    given["ext_modules"][0].py_limited_api, dict(given["ext_modules"][0].define_macros), given["options"]]))
exec(compile(open("setup.py").read(), "setup.py", "exec"), {{"__file__": "setup.py", "__name__": "__main__"}})
"""


@pytest.mark.parametrize(("wish", "free_threaded"), [("", False), ("0", False), ("1", False), ("1", True)])
def test_stable_abi_is_used_where_it_is_asked_for_and_exists(copy: Path, wish: str, free_threaded: bool) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in FLAG_VARIABLES}
    run = subprocess.run(
        [sys.executable, "-c", PLAN.format(free_threaded=free_threaded)],
        cwd=copy,
        env=inherited | {"FASTCE_ABI3": wish, "FASTCE_OPENMP": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    plan = [True, {"Py_LIMITED_API": "0x030B0000"}, {"bdist_wheel": {"py_limited_api": "cp311"}}]
    assert json.loads(run.stdout) == (plan if wish == "1" and not free_threaded else [False, {}, {}])


def test_stable_abi_is_refused_where_there_is_none(build: ModuleType, clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setattr(build, "has_abi3", lambda: False)
    with pytest.raises(SystemExit, match="hostpkg.ce: 3.* has no stable ABI"):
        build.extension("hostpkg.ce", abi3=True)


def test_sdist_holds_sources_tests_and_benchmarks_and_nothing_built(copy: Path, tmp_path: Path) -> None:
    made = setup_py(copy, "-q", "sdist", "--dist-dir", str(tmp_path), FASTCE_OPENMP="0")
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("fastce-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    folder = {f"fastce/{name}" for name in files_in(copy / "fastce")}
    expected = {
        "pyproject.toml",
        "setup.py",
        "README.md",
        "LICENSE",
        "tests/conftest.py",
        "tests/packaging/test_build.py",
        ".docs/from_scores_to_gradient.md",
    } | folder
    assert expected <= names
    assert {f"bench/{path.name}" for path in (copy / "bench").glob("*.py")} <= names
    assert not [name for name in names if name.endswith((".so", ".pyd", ".c", ".pyc"))]


def test_metadata_has_the_version_of_the_source_and_needs_only_numpy() -> None:
    assert importlib.metadata.version("fastce") == fastce.__version__
    required = [line for line in importlib.metadata.requires("fastce") or [] if "extra ==" not in line]
    assert [line.partition(">")[0] for line in required] == ["numpy"]


def test_the_folder_has_its_own_copy_of_the_licence() -> None:
    assert (CHECKOUT / "fastce" / "LICENSE").read_bytes() == (CHECKOUT / "LICENSE").read_bytes()


# Without the import hook of an editable installation, which would find the built package.
NUMPY = f"""
import runpy, sys
sys.path[:0] = ["", {str(Path(np.__file__).parents[1])!r}]
if sys.argv[1] == "-m":
    runpy.run_module(sys.argv[2], run_name="__main__")
exec(sys.argv[2])
"""


def test_sources_that_are_not_built_say_what_to_do(copy: Path) -> None:
    """In the checkout they hide the installed package."""
    for command in (("-c", "import fastce"), ("-m", "fastce")):
        run = subprocess.run([sys.executable, "-S", "-c", NUMPY, *command], cwd=copy, capture_output=True, text=True)
        assert run.returncode == 1
        assert run.stderr.splitlines()[-1].startswith(f"ImportError: the sources in {copy / 'fastce'} are not built")
        assert "Start Python in another folder, or build the sources in place" in run.stderr


# --- what is published ------------------------------------------------------------------------------------------------

needs_ci = pytest.mark.skipif(not (CHECKOUT / ".ci" / "wheels.sh").is_file(), reason="an sdist has no .ci and .github")


@needs_ci
def test_the_conda_recipe_and_the_citation_say_what_pyproject_says() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    recipe = (CHECKOUT / ".github" / "conda" / "recipe.yaml").read_text(encoding="utf-8")

    def listed(section: str) -> set[str]:
        (block,) = re.findall(rf"^  {section}:\n((?:    .*\n)+)", recipe, flags=re.MULTILINE)
        return {re.sub(r"[ ]", "", line).lower() for line in re.findall(r"^    - (.*)$", block, flags=re.MULTILINE)}

    requires = {line.lower() for line in project["build-system"]["requires"]}
    assert {line for line in listed("host") if ">" in line} == requires
    assert listed("run") == {"python", *project["project"]["dependencies"]}
    oldest = project["project"]["requires-python"].removeprefix(">=")
    assert f'skip: match(python, "<{oldest}")' in recipe
    assert f"summary: {project['project']['description']}\n" in recipe
    assert f"license: {project['project']['license']}\n" in recipe
    assert f'version: "{fastce.__version__}"\n' in recipe
    citation = (CHECKOUT / ".github" / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {fastce.__version__}\n" in citation
    assert f"license: {project['project']['license']}\n" in citation


@needs_ci
@pytest.mark.parametrize("with_libgomp", [True, False])
def test_a_repaired_wheel_has_the_licence_of_the_libgomp_that_it_brings(with_libgomp: bool, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("repair", CHECKOUT / ".ci" / "repair.py")
    repair = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(repair)
    contents = {
        "fastce/__init__.py": "",
        "fastce-1.dist-info/METADATA": "Name: fastce\nLicense-File: LICENSE\nRequires-Dist: numpy\n\nText.\n",
        "fastce-1.dist-info/licenses/LICENSE": "BSD",
        "fastce-1.dist-info/RECORD": "",
    }
    if with_libgomp:
        contents["fastce.libs/libgomp-1a2b3c.so.1.0.0"] = "machine code"
    with zipfile.ZipFile(tmp_path / "before.whl", "w") as wheel:
        for name, content in contents.items():
            wheel.writestr(name, content)
    repair.with_licence(tmp_path / "before.whl", tmp_path / "after.whl")

    with zipfile.ZipFile(tmp_path / "after.whl") as wheel:
        names = wheel.namelist()
        record = dict(line.split(",", 1) for line in wheel.read(names[-1]).decode().splitlines())
        metadata = wheel.read("fastce-1.dist-info/METADATA").decode()
        for name in names[:-1]:
            digest, size = record.pop(name).removeprefix("sha256=").split(",")
            content = wheel.read(name)
            assert base64.urlsafe_b64decode(digest + "=") == hashlib.sha256(content).digest()
            assert int(size) == len(content)
        licence = "fastce-1.dist-info/licenses/LICENSE-libgomp.txt"
        assert set(names) - contents.keys() == ({licence} if with_libgomp else set())
        if with_libgomp:
            text = wheel.read(licence).decode()
            assert "GCC RUNTIME LIBRARY EXCEPTION" in text and "GNU GENERAL PUBLIC LICENSE" in text
    assert names[-1] == "fastce-1.dist-info/RECORD" and record == {names[-1]: ","}
    assert ("License-File: LICENSE\nLicense-File: LICENSE-libgomp.txt\n" in metadata) == with_libgomp
