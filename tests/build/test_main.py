"""``python -m fastce`` and the scripts of bench/, each run as its users run it, in an interpreter of its own."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from scripts import CONFIG, run_command

import fastce

BENCH = Path(__file__).resolve().parents[2] / "bench"

needs_bench = pytest.mark.skipif(not BENCH.is_dir(), reason="there is no bench/ beside these tests")


# --- python -m fastce -------------------------------------------------------------------------------------------------

QUICK_CASES = ("32 x 10", "16384 x 10", "1024 x 1000")


def check_report(text: str, package: str) -> None:
    """The report has all of show_config, and two lines for each case: loss and gradient, loss alone."""
    for name, value in CONFIG.items():
        value = ", ".join(value) if isinstance(value, list) else value
        assert re.search(rf"^{name}: +{re.escape(str(value))}$", text, re.MULTILINE), name
    assert f"{package} against its NumPy reference" in text
    cell = r" +\d[\d.]* (?:us|ms|s)"
    for case in QUICK_CASES:
        lines = re.findall(rf"^{case}{cell}(?:{cell} +\d+\.\dx)+{cell}$", text, re.MULTILINE)
        assert len(lines) == 2, f"{case}:\n{text}"


def test_module_run_prints_the_configuration_and_both_tables(tmp_path: Path) -> None:
    done = run_command(sys.executable, "-P", "-m", "fastce", "--quick", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")  # progress is shown on terminals only
    check_report(done.stdout, "fastce")


@pytest.mark.skipif(os.name != "posix", reason="a terminal to run in is made with POSIX's pty")
def test_module_run_of_a_vendored_copy_on_a_terminal(tmp_path: Path) -> None:
    """A copy under another name prints that name and never fastce. It shows its progress on a terminal."""
    package = Path(fastce.__file__).parent
    shutil.copytree(package, tmp_path / "host" / "loss", ignore=shutil.ignore_patterns("__pycache__"))
    libraries = package.with_name("fastce.libs")  # the OpenMP runtime of a repaired wheel lies beside the package
    if libraries.is_dir():
        shutil.copytree(libraries, tmp_path / "host" / libraries.name)
    (tmp_path / "host" / "__init__.py").touch()
    terminal, stderr = os.openpty()
    try:
        done = run_command(sys.executable, "-m", "host.loss", "--quick", folder=tmp_path, stderr=stderr)
        shown = os.read(terminal, 10_000).decode()
    finally:
        os.close(terminal)
        os.close(stderr)
    assert done.returncode == 0, shown
    check_report(done.stdout, "host.loss")
    assert "fastce" not in done.stdout
    for number, (title, case) in enumerate((t, c) for t in ("loss + gradient", "forward") for c in QUICK_CASES):
        assert f"[{number}/6] {case}, {title} ..." in shown


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_module_run_refuses_to_time_wrong_results(
    wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module("fastce.__main__")

    def broken(logits, labels, **options):
        loss, grad = fastce.cross_entropy_with_grad(logits, labels, **options)
        if wrong == "gradient":
            grad[-1, -1] += 1e-3 * grad.max()
        return loss * (1.001 if wrong == "loss" else 1), grad

    monkeypatch.setattr(main, "cross_entropy_with_grad", broken)
    monkeypatch.setattr(main, "measure", lambda *_: pytest.fail("was timed"))
    monkeypatch.setattr(sys, "argv", ["fastce", "--quick"])
    assert main.main() == 1
    assert re.search(f"^FAILED: 1 thread, 32 x 10: .*{wrong}", capsys.readouterr().err)


# --- bench/ -----------------------------------------------------------------------------------------------------------

SCRIPTS = {
    "compare.py": (),
    "minimax.py": ("mpmath",),
    "report.py": ("matplotlib",),
    "small_calls.py": (),
    "train_digits.py": ("sklearn", "threadpoolctl"),
    "train_lm.py": (),
}


@needs_bench
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_say_what_they_take(script: str, tmp_path: Path) -> None:
    for package in SCRIPTS[script]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{script} needs {package}, which is not installed")
    helped = run_command(sys.executable, BENCH / script, "--help", folder=tmp_path)
    assert helped.returncode == 0, helped.stderr
    assert f"python bench/{script}" in helped.stdout
    refused = run_command(sys.executable, BENCH / script, "--no-such-option", folder=tmp_path)
    assert refused.returncode == 2
    assert "unrecognized arguments: --no-such-option" in refused.stderr


@needs_bench
def test_comparison_has_every_side_and_the_memory(tmp_path: Path) -> None:
    done = run_command(
        sys.executable, BENCH / "compare.py", "--smoke", "--json", "--both", "--case=32 x 10", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    with_gradient, forward = json.loads(done.stdout)["results"]
    for data, gradient, limit in ((with_gradient, True, "copy"), (forward, False, "read")):
        assert (data["case"], data["gradient"], data["size"]) == ("32 x 10", gradient, 320)
        assert {"NumPy", "fastce", limit} <= {side["side"] for side in data["sides"]}
        assert all(side["seconds"] > 0 for side in data["sides"])


@needs_bench
def test_report_redraws_only_what_was_measured(tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("report.py needs matplotlib, which is not installed")
    done = run_command(sys.executable, BENCH / "report.py", "--redraw", "--to", tmp_path, folder=tmp_path)
    assert done.returncode == 2
    assert "nothing was measured yet" in done.stderr


@needs_bench
@pytest.mark.parametrize("steps, learnt", [(2, False), (60, True)])
@pytest.mark.slow
def test_language_model_learns_or_says_that_it_did_not(steps: int, learnt: bool, tmp_path: Path) -> None:
    done = run_command(sys.executable, BENCH / "train_lm.py", f"--steps={steps}", folder=tmp_path)
    assert done.returncode == (0 if learnt else 1), done.stdout + done.stderr
    assert ("FAILED: the model has learnt no more than frequencies" in done.stderr) is not learnt
    assert re.search(r"^speed-up +[\d.]+x of the loss, [\d.]+x of the step$", done.stdout, re.MULTILINE)
