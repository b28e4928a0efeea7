"""Options and set-up of `pytest bench`, and the tables that replace those of pytest-benchmark."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for cases.py and peers.py; the root of the checkout stays off the path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="few rows, to check the benchmarks without measuring")


def pytest_configure(config: pytest.Config) -> None:
    try:
        from fastce import _kernels  # noqa: F401  the folder next to bench/ can be found but not imported before it is built
    except ImportError as error:
        hint = "install it first (`pip install '.[bench]'`) and start `pytest`, not `python -m pytest`"
        pytest.exit(f"fastce: {error}: {hint}", pytest.ExitCode.USAGE_ERROR)
    config.addinivalue_line("filterwarnings", "default")  # warnings of peers are not errors
    config.option.benchmark_quiet = True
    if config.getoption("--smoke"):
        config.option.benchmark_disable = True


def pytest_report_header() -> str:
    from peers import describe, left_out

    return "\n".join(filter(None, (describe(), left_out())))


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, list] = {}
    for bench in session.benchmarks if session else []:
        if bench.stats.data:
            groups.setdefault(bench.group, []).append(bench)
    write = terminalreporter.write_line
    for group, benches in groups.items():
        seconds = {bench.extra_info["side"]: bench.stats.min for bench in benches}
        ours = {label: best for label, best in seconds.items() if label.startswith("fastce")}
        write("")
        write(f"{group}: best time, and slowdown relative to fastce", bold=True)
        write(f"{'':24}{'µs':>12}{'ns/logit':>10}{'GB/s':>8}" + "".join(f"{'/ ' + label:>20}" for label in ours))
        for bench in benches:
            info, best = bench.extra_info, bench.stats.min
            figures = f"{best * 1e6:12.2f}{best * 1e9 / info['size']:10.3f}{info['bytes'] / best / 1e9:8.2f}"
            write(f"{info['side']:24}{figures}" + "".join(f"{best / us:20.2f}" for us in ours.values()))
    if groups:
        write("\n" + pytest_report_header())
