"""Compare the instruction sets of fastce that this processor runs, and print a markdown table.

    python bench/instruction_sets.py [--case 4096] [--seconds 2]

An instruction set is chosen when fastce is imported, so each has a process of its own. In each case the processes take
turns, one at a time, and the best time of each counts. Loss + gradient; every call returns a new gradient, except where
the case works in place. The results are verified first, on a few rows: the tests verify all instruction sets."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from cases import CASES, Case, Problem
from compare import number_text
from peers import THREADS, Run, describe, fastce_runs

import fastce
from fastce.__main__ import measure

TURNS = 4  # of each process for each case


def sides_of(problem: Problem) -> list[Run]:
    return [run for run in fastce_runs(problem, True) if bool(run.reuses) == problem.case.in_place]


def serve() -> None:
    """Answer each request, a line of standard input, with the best times of a case. The last case is kept."""
    last, sides = None, []
    for line in sys.stdin:
        fields, seconds, rounds = json.loads(line)
        if last != (case := Case(**fields | {"shape": tuple(fields["shape"])})):
            few_rows = Problem(case.smoke())
            for run in sides_of(few_rows):
                run.verify(few_rows)
            last, sides = case, sides_of(Problem(case))
        times = measure({run: run.call for run in sides}, seconds, rounds)
        print(json.dumps([times[run].best for run in sides]), flush=True)


class Worker:
    """A process that uses one instruction set."""

    def __init__(self, isa: str):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=os.environ | {"FASTCE_ISA": isa},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def best(self, case: Case, seconds: float, rounds: int) -> list[float]:
        """Best seconds of one call with each number of threads, after one turn."""
        self.process.stdin.write(json.dumps([vars(case), seconds, rounds]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{case.name}: the process of an instruction set ended")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def rows(cases: Iterable[Case], seconds: float, turns: int = TURNS) -> list[dict[str, Any]]:
    """The results of the cases, ready for JSON: best seconds with each number of threads, by instruction set."""
    workers = {isa: Worker(isa) for isa in fastce.show_config(mode="dicts")["isa_available"]}
    results = []
    try:
        for case in cases:
            print(f"{case.name}, {', '.join(workers)} ...", file=sys.stderr, flush=True)
            found = {isa: [math.inf] * len(THREADS) for isa in workers}
            for _ in range(turns):
                for isa, worker in workers.items():
                    turn = worker.best(case, seconds / turns / len(workers), 1)
                    found[isa] = [min(pair) for pair in zip(found[isa], turn, strict=True)]
            results.append({"case": case.name, "size": math.prod(case.shape), "seconds": found})
    finally:
        for worker in workers.values():
            worker.close()
    return results


def table(results: list[dict[str, Any]]) -> str:
    """A markdown table. The numbers in brackets are speeds relative to the first instruction set."""
    first, *others = results[0]["seconds"]
    lines = [f"| ns per logit | {' | '.join([first, *others])} |", "|---|---|" + "---|" * len(others)]
    for data in results:
        scale, name = 1e9 / data["size"], data["case"]
        if data["size"] < 1000:
            scale, name = 1e6, f"{name} (µs a call)"
        cells = [name]
        for isa, best in data["seconds"].items():
            cell = " / ".join(number_text(scale * seconds) for seconds in best)
            pairs = zip(data["seconds"][first], best, strict=True)
            cells.append(cell + ("" if isa == first else f" ({' / '.join(f'{a / b:.2f}x' for a, b in pairs)})"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", metavar="TEXT", help="only cases with TEXT in their name")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each case (default %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="few rows and one turn, to check that everything runs")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    cases = [case for case in CASES if arguments.case in case.name]
    if not cases:
        parser.error("no such case; the cases are: " + "; ".join(case.name for case in CASES))
    if arguments.smoke:
        found = rows([case.smoke() for case in cases], 0.0, 1)
    else:
        found = rows(cases, arguments.seconds)
    legend = f"{THREADS[0]} / {THREADS[1]} threads; in brackets: speed relative to the first instruction set"
    print(f"{describe()}\n\n{legend}\n\n{table(found)}")


if __name__ == "__main__":
    main()
