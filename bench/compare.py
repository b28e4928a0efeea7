"""Compare the speed of fastce, its NumPy reference and the installed peers, and print a markdown table.

    python bench/compare.py                              # loss + gradient, all cases
    python bench/compare.py --forward --case 4096        # forward only, cases with "4096" in their name
    taskset -c 0 python bench/compare.py                 # all on one core, JAX included

All results are verified before anything is timed. The implementations then take turns until the time for the case is
used up, and the best time of each is shown. A slow minute of the machine thus affects all of them. pytest-benchmark
(`pytest bench`) times one after the other. In a turn, an implementation runs several times in a row, so data that fits
in a cache is found there."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from cases import CASES, Case, Problem
from peers import OWN, THREADS, Run, describe, environment, runs

from fastce import __main__ as timing

TITLES = {True: "Loss + gradient", False: "Forward"}
LEGEND = f"{THREADS[0]} / {THREADS[1]} threads; in brackets: slowdown relative to fastce at the same number of threads"
ROUNDS = 5  # at least, however long a case takes
ORDER = ["NumPy", "PyTorch", "JAX", "scikit-learn", "Numba"]
LIMITS = ["copy", "rewrite", "read"]


def measure(problem: Problem, sides: list[Run], seconds: float, rounds: int = ROUNDS) -> dict[Run, float]:
    """Best seconds of one call of each side. The results are verified first."""
    for run in sides:
        run.verify(problem)
    return timing.measure({run: run.call for run in sides}, seconds, rounds, enter=lambda run: run.enter())


def row(case: Case, gradient: bool, best: dict[Run, float]) -> dict:
    """The results of one case, ready for JSON."""
    size = math.prod(case.shape)
    payload = size * np.dtype(case.dtype).itemsize * (1 + gradient)
    sides = [
        {
            "side": run.side,
            "threads": run.threads if run.threads != OWN else None,
            "seconds": seconds,
            "ns_per_logit": seconds * 1e9 / size,
            "GB_per_s": payload / seconds / 1e9,
        }
        for run, seconds in best.items()
    ]
    return {"case": case.name, "gradient": gradient, "size": size, "sides": sides}


def rows_of(case: Case, modes: Iterable[bool], seconds: float, rounds: int = ROUNDS) -> Iterator[dict]:
    """The results of one case, with and without gradient as `modes` asks for and the case allows."""
    problem = Problem(case)
    for gradient in modes:
        if gradient in case.modes:
            print(f"{case.name}, {TITLES[gradient].lower()} ...", file=sys.stderr, flush=True)
            yield row(case, gradient, measure(problem, runs(problem, gradient), seconds, rounds))


def number_text(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def times_text(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x"


def table(rows: Iterable[dict]) -> str:
    """A markdown table with a line for each case. A cell holds the times with one and with many threads.

    The numbers in brackets are these times divided by those of fastce at the same number of threads. Some cells hold
    one time, which is divided by both of fastce: NumPy uses one thread, JAX chooses its own number, and of the memory
    limit only the better time is shown.
    """
    rows = list(rows)
    found = {side["side"] for data in rows for side in data["sides"]}
    sides = [[name] for name in ORDER if name in found] + [[name for name in LIMITS if name in found]]
    titles = " | ".join(" or ".join(names) for names in sides)
    lines = [f"| ns per logit | fastce | {titles} |", "|---|---|" + "---|" * len(sides)]
    for data in rows:
        scale, name = 1e9 / data["size"], data["case"]
        if data["size"] < 1000:
            scale, name = 1e6, f"{name} (µs a call)"
        best: dict[str, list[float]] = {}
        for side in data["sides"]:
            best.setdefault(side["side"], []).append(side["seconds"])
        ours = best.pop("fastce")
        cells = [name, " / ".join(number_text(scale * seconds) for seconds in ours)]
        for names in sides:
            theirs = [seconds for name in names for seconds in best.get(name, [])]
            if names[0] in LIMITS:
                theirs = [min(theirs)]
            times = " / ".join(number_text(scale * seconds) for seconds in theirs)
            pairs = zip(theirs if len(theirs) == len(ours) else theirs * len(ours), ours, strict=True)
            cells.append(f"{times} ({' / '.join(times_text(them / us) for them, us in pairs)})" if theirs else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--case", action="append", metavar="TEXT", help="only cases with TEXT in their name; can be repeated"
    )
    parser.add_argument("--forward", action="store_true", help="forward only, instead of loss + gradient")
    parser.add_argument("--both", action="store_true", help="add a second table for forward only")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="time for each case, at least five rounds (default %(default)s)"
    )
    parser.add_argument("--smoke", action="store_true", help="few rows and one round, to check that everything runs")
    parser.add_argument("--json", action="store_true", help="print raw numbers instead of a table")
    arguments = parser.parse_args()
    modes = [True, False] if arguments.both else [not arguments.forward]
    cases = [c for c in CASES if arguments.case is None or any(text in c.name for text in arguments.case)]
    if not cases:
        parser.error("no such case; the cases are: " + "; ".join(case.name for case in CASES))
    if arguments.smoke:
        cases = [case.smoke() for case in cases]
    seconds, rounds = (0.0, 1) if arguments.smoke else (arguments.seconds, ROUNDS)
    results = [data for case in cases for data in rows_of(case, modes, seconds, rounds)]
    if arguments.json:
        print(json.dumps({"environment": environment(), "results": results}, indent=1))
        return 0
    print(describe())
    for gradient in modes:
        if chosen := [data for data in results if data["gradient"] == gradient]:
            print(f"\n{TITLES[gradient]}; {LEGEND}\n\n{table(chosen)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
