"""Time all implementations on all cases with pytest-benchmark, forward and loss + gradient.

Results are verified against a float64 computation before they are timed. Every call returns a new gradient, except
where the case works in place. pytest-benchmark times the implementations one after the other. The tables of the README
come from compare.py and report.py, which interleave them.
"""

from __future__ import annotations

from functools import lru_cache

import peers
import pytest
from cases import CASES, Case, Problem

MODES = {True: "loss+grad", False: "forward"}
SIDES = {name: bind for name, _, bind in peers.SIDES}


@lru_cache(maxsize=1)
def problem_of(case: Case) -> Problem:
    """The problem of a case. Only the last one is kept, because the largest takes 800 MB; the case varies slowest."""
    return Problem(case)


def threads_of(side: str) -> tuple[int, ...]:
    return (1,) if side == "NumPy" else (peers.OWN,) if side == "JAX" else peers.THREADS


CHOICES = [(side, threads) for side in SIDES for threads in threads_of(side)]
IDS = [side if len(threads_of(side)) == 1 else f"{side}-{threads}" for side, threads in CHOICES]


@pytest.mark.parametrize("side, threads", CHOICES, ids=IDS)
@pytest.mark.parametrize(
    "case, gradient",
    [pytest.param(case, mode, id=f"{case.name}-{MODES[mode]}") for case in CASES for mode in case.modes],
)
def test_speed(case: Case, gradient: bool, side: str, threads: int, benchmark, pytestconfig) -> None:
    if reason := peers.absence(side):
        pytest.skip(reason)
    if pytestconfig.getoption("--benchmark-disable"):
        case = case.smoke()
    problem = problem_of(case)
    found = [run for run in SIDES[side](problem, gradient) if run.threads == threads]
    if not found:
        pytest.skip(f"{side} does not have this case, or not so many threads")
    run = found[0]
    run.verify(problem)
    benchmark.group = f"{case.name}, {MODES[gradient]}"
    benchmark.extra_info |= {"side": run.label, "size": problem.size, "bytes": problem.moved_bytes(gradient)}
    run.enter()
    benchmark(run.call)
