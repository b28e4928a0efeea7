"""Compare the speed of fastce, its NumPy reference and the installed peers, and print a markdown table.

    python bench/compare.py                              # loss + gradient, all cases
    python bench/compare.py --forward --case 4096        # forward only, cases with "4096" in their name
    taskset -c 0 python bench/compare.py                 # all on one core, JAX included

All results are verified before anything is timed. The implementations then take turns until the time for the case is
used up, and the best time of each is shown. A slow minute of the machine thus affects all of them. pytest-benchmark
(`pytest bench`) times one after the other. In a turn, an implementation runs several times in a row, so data that fits
in a cache is found there.

There are two tables of loss + gradient. In the first, every call returns a new gradient. In the second, the gradient is
written to the same array each time, where a library can do this; libraries that cannot are marked."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from cases import CASES, Case, Problem
from peers import OWN, THREADS, Run, describe, environment, left_out, runs

from fastce import __main__ as timing

MODES = {True: "loss + gradient", False: "forward"}
# The tables by title: whether they have a gradient, and whether it is written to a given array.
TABLES = {
    "Loss + gradient: every call returns a new gradient": (True, False),
    "Loss + gradient: every call writes to the same array": (True, True),
    "Forward": (False, None),
}
MARK = " †"
MARKED = "† returns a new gradient: it cannot write to a given array"
LEGEND = f"{THREADS[0]} / {THREADS[1]} threads; in brackets: slowdown relative to fastce at the same number of threads"
ROUNDS = 5  # at least, however long a case takes
ORDER = ["NumPy", "PyTorch", "torch.compile", "JAX", "scikit-learn", "Numba"]
LIMITS = ["copy", "rewrite", "read"]


def measure(problem: Problem, sides: list[Run], seconds: float, rounds: int = ROUNDS) -> dict[Run, timing.Times]:
    """Seconds of one call of each side. The results are verified first."""
    for run in sides:
        run.verify(problem)
    return timing.measure({run: run.call for run in sides}, seconds, rounds, enter=lambda run: run.enter())


def row(case: Case, gradient: bool, measured: dict[Run, timing.Times]) -> dict:
    """The results of one case, ready for JSON."""
    size = math.prod(case.shape)
    payload = size * np.dtype(case.dtype).itemsize * (1 + gradient)
    sides = [
        {
            "side": run.side,
            "threads": run.threads if run.threads != OWN else None,
            "reuses": run.reuses,
            "seconds": times.best,
            "median": times.median,
            "ns_per_logit": times.best * 1e9 / size,
            "GB_per_s": payload / times.best / 1e9,
        }
        for run, times in measured.items()
    ]
    return {"case": case.name, "gradient": gradient, "size": size, "sides": sides}


def rows_of(case: Case, modes: Iterable[bool], seconds: float, rounds: int = ROUNDS) -> Iterator[dict]:
    """The results of one case, with and without gradient as `modes` asks for and the case allows."""
    problem = Problem(case)
    for gradient in modes:
        if gradient in case.modes:
            print(f"{case.name}, {MODES[gradient]} ...", file=sys.stderr, flush=True)
            yield row(case, gradient, measure(problem, runs(problem, gradient), seconds, rounds))


def number_text(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def times_text(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1 else f"{ratio:.2f}x"


def of_table(rows: Iterable[dict], gradient: bool, reuses: bool | None) -> list[dict]:
    """The rows of a table, with the sides that belong to it."""
    chosen = [
        data | {"sides": [side for side in data["sides"] if side["reuses"] in (reuses, None)]}
        for data in rows
        if data["gradient"] == gradient
    ]
    return [data for data in chosen if any(side["side"] == "fastce" for side in data["sides"])]


def table(rows: Iterable[dict], reuses: bool | None, key: str = "seconds") -> str:
    """A markdown table with a line for each of the rows, which `of_table` has chosen. `key` is "seconds", for the best
    times, or "median". A cell holds the times with one and with many threads.

    The numbers in brackets are these times divided by those of fastce at the same number of threads. Some cells hold
    one time, which is divided by both of fastce: NumPy uses one thread, JAX chooses its own number, and of the memory
    limit only the better time is shown.
    """
    rows = list(rows)
    found = {side["side"]: side["reuses"] for data in rows for side in data["sides"]}
    sides = [[name] for name in ORDER if name in found] + [[name for name in LIMITS if name in found]]
    titles = " | ".join(
        " or ".join(names) + MARK * bool(reuses and found[names[0]] is None and names[0] in ORDER) for names in sides
    )
    lines = [f"| ns per logit | fastce | {titles} |", "|---|---|" + "---|" * len(sides)]
    for data in rows:
        scale, name = 1e9 / data["size"], data["case"]
        if data["size"] < 1000:
            scale, name = 1e6, f"{name} (µs a call)"
        best: dict[str, list[float]] = {}
        for side in data["sides"]:
            best.setdefault(side["side"], []).append(side[key])
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
    print("\n".join(filter(None, (describe(), left_out()))))
    for title, (gradient, reuses) in TABLES.items():
        if chosen := of_table(results, gradient, reuses):
            notes = [title, LEGEND, *([MARKED] if reuses else [])]
            print(f"\n{'; '.join(notes)}\n\n{table(chosen, reuses)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
