"""Threads where other programs use the processors too, and where Python has other interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripts import needs_openmp, needs_two_cpus

MEDIANS = """
import statistics, time
x, labels = BIG.reshape(-1)[:163840].reshape(16384, 10), LABELS.repeat(4) % 10
out = np.empty_like(x)

def seconds(**options):
    start = time.perf_counter()
    losses.add(fastce.cross_entropy_with_grad(x, labels, out=out, **options)[0])
    return time.perf_counter() - start

losses, pauses = set(), []
one, automatic = [], []
deadline = time.perf_counter() + 4
while time.perf_counter() < deadline:
    one += [seconds(num_threads=1) for _ in range(20)]
    automatic += [seconds() for _ in range(20)]
    pauses.append(fastce.show_config("dicts")["pause"])
report([statistics.median(automatic) / statistics.median(one), len(losses), min(pauses), max(pauses)])
"""


@pytest.fixture
def busy() -> Iterator[None]:
    """Two processes for each CPU that compute without end."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    yield
    for process in processes:
        process.kill()
        process.wait()


@needs_openmp
@needs_two_cpus
def test_the_automatic_choice_does_not_wait_for_busy_processors(run: Callable[..., Any], busy: None) -> None:
    ratio, results, shortest_pause, longest_pause = run(MEDIANS)
    assert ratio < 3  # it was 30 to 300
    assert results == 1
    assert 0 <= shortest_pause <= longest_pause <= 1


@needs_openmp
def test_a_given_number_of_threads_is_not_observed(run: Callable[..., Any], busy: None) -> None:
    assert run(
        """
        for _ in range(20):
            result(num_threads=2)
        report(fastce.show_config("dicts")["pause"])
        """
    ) == 0  # fmt: skip


@needs_openmp
def test_threads_after_another_interpreter_has_ended(run: Callable[..., Any]) -> None:
    assert run(
        """
        try:
            import _interpreters
        except ImportError:
            import _xxsubinterpreters as _interpreters
        one = result(num_threads=1)
        _interpreters.destroy(_interpreters.create())
        report(result(num_threads=2) == one)
        """
    )
