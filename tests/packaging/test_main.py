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

import numpy as np
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
        shown = r"\d+\.\d{3} s" if name == "pause" else re.escape(str(value))
        assert re.search(rf"^{name}: +{shown}$", text, re.MULTILINE), name
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


def test_measure_takes_the_median_of_single_calls_and_the_best_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short calls are also timed several at a time. The clock of this test advances only while something runs."""
    main = importlib.import_module("fastce.__main__")
    now, entered, lengths = [0.0], [], iter([1.0, 4.0, 2.0] * 10**6)

    def advance(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(main, "time", type("Clock", (), {"perf_counter": lambda: now[0], "sleep": lambda _: None}))
    monkeypatch.setattr(main, "BATCH", 50e-6)
    calls = {"short": lambda: advance(1e-6 * next(lengths)), "long": lambda: advance(0.5)}
    times = main.measure(calls, 2.0, 3, enter=entered.append)
    assert times["long"] == pytest.approx((0.5, 0.5))
    assert times["short"].best == pytest.approx(1e-6)
    assert times["short"].median == pytest.approx(2e-6)
    assert entered[:2] == entered[2:4] == ["short", "long"]
    assert len(entered) >= 2 * (1 + 3)


# --- bench/ -----------------------------------------------------------------------------------------------------------

SCRIPTS = {
    "accuracy.py": (),
    "chapter.py": (),
    "compare.py": (),
    "evaluate_lm.py": (),
    "instruction_sets.py": (),
    "linear.py": (),
    "minimax.py": ("mpmath",),
    "paths.py": (),
    "report.py": ("matplotlib", "scipy"),
    "scale.py": (),
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
    for data, gradient, limit, reuses in (
        (with_gradient, True, "copy", {False, True}),
        (forward, False, "read", {None}),
    ):
        assert (data["case"], data["gradient"], data["size"]) == ("32 x 10", gradient, 320)
        for name in ("NumPy", "fastce", limit):
            assert {side["reuses"] for side in data["sides"] if side["side"] == name} == reuses
        assert all(side["median"] >= side["seconds"] > 0 for side in data["sides"])


@needs_bench
def test_comparison_marks_libraries_that_cannot_write_to_a_given_array(tmp_path: Path) -> None:
    done = run_command(
        sys.executable,
        BENCH / "compare.py",
        "--smoke",
        "--case=32 x 10",
        "--case=1024 x 32000, in place",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    new, same = re.split(r"^Loss \+ gradient: every call ", done.stdout, flags=re.MULTILINE)[1:]
    assert new.startswith("returns a new gradient") and "†" not in new and "in place" not in new
    assert same.startswith("writes to the same array") and "in place" in same
    header = next(line for line in same.splitlines() if line.startswith("| ns per logit"))
    cannot = {name.removesuffix(" †") for name in header.strip("| ").split(" | ") if name.endswith("†")}
    assert cannot <= {"PyTorch", "torch.compile", "JAX"}
    assert all((name in header) == (name in cannot) for name in ("PyTorch", "torch.compile", "JAX"))


@needs_bench
def test_paths_and_instruction_sets_run(tmp_path: Path) -> None:
    done = run_command(sys.executable, BENCH / "paths.py", "--smoke", "--shape=4096x1000xfloat32", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    cell = r"[\d.]+( ns)? \([\d.]+( ns)?\)"
    for name in ("plain call", "softmax_grad, axis=0", "predict", "without out", "layer with reuse_grad"):
        assert re.search(rf"^\| {name} \|( [\d.]*( argmax)? \|)? {cell} \|$", done.stdout, re.MULTILINE), name
    command = (sys.executable, BENCH / "instruction_sets.py", "--smoke", "--case=65536 x 10")
    done = run_command(*command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"| ns per logit | {' | '.join(CONFIG['isa_available'])} |" in done.stdout
    assert len(re.findall(r"^\| 65536 x 10\b", done.stdout, re.MULTILINE)) == 2


@needs_bench
def test_errors_are_measured_and_below_their_bounds(tmp_path: Path) -> None:
    done = run_command(sys.executable, BENCH / "accuracy.py", "--smoke", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (.*?) \| (\d+) \|((?: \d+\.\d\d \|)+)$", done.stdout, flags=re.MULTILINE)
    assert len(rows) == len(done.stdout.splitlines()) - 4 > 20
    assert all(cells.count("|") == 2 * len(CONFIG["isa_available"]) for _, _, cells in rows)


def skip_without_the_packages_of_the_report() -> None:
    for package in SCRIPTS["report.py"]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"report.py needs {package}, which is not installed")


@needs_bench
@pytest.mark.slow
def test_report_writes_tables_pictures_and_the_readme(tmp_path: Path) -> None:
    skip_without_the_packages_of_the_report()
    target = tmp_path / "figures"
    done = run_command(sys.executable, BENCH / "report.py", "--smoke", "--to", target, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {"README.md", "accuracy.png", "classes.png", "data.json", "speedup.png", "tables.md", "threads.png"}
    assert {path.name for path in target.iterdir()} == names
    tables, readme = ((target / name).read_text("utf-8") for name in ("tables.md", "README.md"))
    for title in ("Summary", "By instruction set", "Other paths", "Where the gradient is written", "Accuracy"):
        assert f"## {title}\n" in tables
    summary = readme.split("<!-- report: speed -->\n")[1].split("<!-- report: end -->")[0].strip()
    assert summary and summary in tables
    done = run_command(sys.executable, BENCH / "report.py", "--redraw", "--to", target, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (target / "tables.md").read_text("utf-8") == tables


@needs_bench
def test_report_redraws_only_what_was_measured(tmp_path: Path) -> None:
    skip_without_the_packages_of_the_report()
    done = run_command(sys.executable, BENCH / "report.py", "--redraw", "--to", tmp_path, folder=tmp_path)
    assert done.returncode == 2
    assert "nothing was measured yet" in done.stderr


@needs_bench
def test_a_file_of_logits_is_evaluated_in_chunks(tmp_path: Path) -> None:
    """The same in one chunk and in several. What is made without a file is a slow test."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "logits.npy", rng.normal(size=(100, 50)).astype(np.float32))
    np.save(tmp_path / "labels.npy", rng.integers(50, size=100))
    command = (sys.executable, BENCH / "evaluate_lm.py", "--logits=logits.npy", "--labels=labels.npy")
    outputs = []
    for memory, at_a_time in (("32", 167772), ("0.001", 5)):
        done = run_command(*command, f"--memory={memory}", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"{at_a_time} rows at a time" in done.stderr and f"[{'#' * 30}] 100%" in done.stderr
        outputs.append(done.stdout.splitlines()[:-1])  # without the speed
    assert outputs[0] == outputs[1]
    assert outputs[0][0].split() == ["rows", "100", "of", "0.2", "KiB"]


@needs_bench
@pytest.mark.slow
def test_a_bigram_model_is_evaluated(tmp_path: Path) -> None:
    done = run_command(sys.executable, BENCH / "evaluate_lm.py", "--rows=500", "--memory=4", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 10 < float(re.search(r"^perplexity +([\d.]+)", done.stdout, re.MULTILINE)[1]) < 2000


@needs_bench
@pytest.mark.parametrize("steps, learnt", [(2, False), (60, True)])
@pytest.mark.slow
def test_language_model_learns_or_says_that_it_did_not(steps: int, learnt: bool, tmp_path: Path) -> None:
    done = run_command(sys.executable, BENCH / "train_lm.py", f"--steps={steps}", folder=tmp_path)
    assert done.returncode == (0 if learnt else 1), done.stdout + done.stderr
    assert ("FAILED: the model has learnt no more than frequencies" in done.stderr) is not learnt
    assert re.search(r"^speed-up +[\d.]+x of the loss, [\d.]+x of the step$", done.stdout, re.MULTILINE)
