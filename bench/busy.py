"""Measure the loss inside a training step, beside busy processes, and print a markdown table.

    python bench/busy.py [--seconds 120] [--busy 0 1 2 4]

A step is `hidden @ weight -> loss and gradient -> gradient @ weight.T`, in float32, with NumPy's own threads in the
products. Only the loss is timed, and the median counts. The sides are the NumPy reference, fastce with one thread, with
all threads (`num_threads=n`) and with the automatic number. Each runs in a process of its own, as threads that have
just worked slow down what follows, and they take turns. A busy process runs an endless loop."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import fastce

STEPS = [(512, 256, 1000), (16384, 32, 10), (4096, 64, 1000), (1024, 64, 32000)]
ALL = fastce.show_config("dicts")["threads"]
NUMPY, ONE, FIXED, AUTOMATIC = SIDES = ["NumPy", "1 thread", f"{ALL} threads", "automatic"]
TURNS = 4


def loss(side: str) -> Callable[..., Any]:
    if side == NUMPY:
        return fastce.reference.cross_entropy_with_grad
    threads = {ONE: 1, FIXED: ALL, AUTOMATIC: None}[side]
    return lambda *arguments, **options: fastce.cross_entropy_with_grad(*arguments, num_threads=threads, **options)


def worker(side: str, rows: int, width: int, classes: int) -> None:
    """Run steps for as many seconds as each line of the standard input says, and print how long the losses took."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((rows, width), dtype=np.float32)
    weight = rng.standard_normal((width, classes), dtype=np.float32)
    labels = rng.integers(classes, size=rows)
    x, out, back = np.empty((rows, classes), np.float32), np.zeros((rows, classes), np.float32), np.empty_like(hidden)
    call = loss(side)
    for line in sys.stdin:
        times = []
        deadline = time.perf_counter() + float(line)
        while time.perf_counter() < deadline or len(times) < 3:
            np.matmul(hidden, weight, out=x)
            start = time.perf_counter()
            call(x, labels, out=out)
            times.append(time.perf_counter() - start)
            np.matmul(out, weight.T, out=back)
        print(*times, flush=True)


def medians(step: tuple[int, int, int], sides: list[str], seconds: float) -> dict[str, float]:
    """The median time of the loss of each side, in seconds."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    workers = {
        side: subprocess.Popen(
            [sys.executable, __file__, "--worker", side, *map(str, step)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side in sides
    }
    try:
        for turn in range(-1, TURNS):  # the first only warms up
            for side, process in workers.items():
                print(seconds / TURNS / len(sides) if turn >= 0 else 0.0, file=process.stdin, flush=True)
                line = process.stdout.readline()
                if turn >= 0:
                    times[side] += map(float, line.split())
    finally:
        for process in workers.values():
            process.kill()
            process.wait()
    return {side: statistics.median(of_side) for side, of_side in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="in all (default %(default)s)")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4], help="numbers of busy processes")
    parser.add_argument("--no-numpy", action="store_true", help="leave out the NumPy reference")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker[0], *map(int, arguments.worker[1:]))
        return
    sides = SIDES[arguments.no_numpy :]
    print(f"| step | busy | {' | '.join(sides)} | automatic / best |\n" + "|---" * (len(sides) + 3) + "|")
    for busy in arguments.busy:
        neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            for step in STEPS:
                some = medians(step, sides, arguments.seconds / len(STEPS) / len(arguments.busy))
                cells = " | ".join(f"{1e6 * some[side]:.0f} us" for side in sides)
                name, best = " x ".join(map(str, step)), min(some[ONE], some[FIXED])
                print(f"| {name} | {busy} | {cells} | {some[AUTOMATIC] / best:.2f} |", flush=True)
        finally:
            for neighbour in neighbours:
                neighbour.kill()
                neighbour.wait()


if __name__ == "__main__":
    main()
