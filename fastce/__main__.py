"""Show how the package was built, and compare its speed with that of its NumPy reference, in half a minute.

Run it as ``python -m`` followed by the name of the package. It needs only NumPy. Every result is compared with that of
the reference in float64 before anything is timed. The implementations then run interleaved, and the best time of each
is shown. All write the gradient to the same array. The last column is a lower bound set by memory: the time to copy the
logits to that array, or to read them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np

from . import cross_entropy, cross_entropy_with_grad, show_config
from . import reference as _reference

reference: Any = _reference  # it has no types
Side = TypeVar("Side")

CASES = [
    (32, 10, "float32"),
    (65536, 10, "float32"),
    (128, 1000, "float32"),
    (4096, 1000, "float32"),
    (4096, 1000, "float64"),
    (1024, 32000, "float32"),
    (256, 128256, "float32"),
]
QUICK_CASES = [(32, 10, "float32"), (16384, 10, "float32"), (1024, 1000, "float32")]
SECONDS, QUICK_SECONDS = 1.5, 0.3  # for each line of a table, unless ROUNDS take longer
ROUNDS = 3
TURN = 0.01  # seconds that one side runs before the next one does; at least one call
PAUSE = 0.02  # seconds between turns: OpenMP's idle threads keep a core busy for milliseconds after a parallel region
BATCH = 50e-6  # seconds: shorter calls are timed several at a time
BLOCK = 2**20  # logits that are verified at a time
TOLERANCE = {"float32": (1e-4, 1e-6), "float64": (1e-10, 1e-12)}  # of the reference: relative and absolute


def verify(side: str, loss: Any, grad: Any, logits: Any, labels: Any) -> None:
    """Raise an error if the loss or the gradient differs from what the reference computes in float64."""
    rtol, atol = TOLERANCE[str(logits.dtype)]
    rows, classes = logits.shape
    true_loss = 0.0
    step = max(1, BLOCK // classes)
    for start in range(0, rows, step):
        block = slice(start, start + step)
        part, true = reference.cross_entropy_with_grad(
            logits[block].astype(np.float64), labels[block], reduction="sum", upstream=1 / rows
        )
        true_loss += float(part) / rows
        if grad is not None and not (np.abs(grad[block] - true) <= rtol * np.abs(true) + atol / rows).all():
            raise ArithmeticError(f"{side}, {rows} x {classes}: wrong gradient in rows {start} to {start + len(true)}")
    if not abs(float(loss) - true_loss) <= rtol * true_loss:
        raise ArithmeticError(f"{side}, {rows} x {classes}: the loss is {loss}, expected {true_loss}")


class Times(NamedTuple):
    """Seconds of one call."""

    best: float
    median: float


def turn(call: Callable[[], object], number: int) -> list[float]:
    """Seconds of one call, measured again and again for one turn; `number` calls are timed at a time."""
    times, stop = [], time.perf_counter() + TURN
    while True:
        start = time.perf_counter()
        for _ in range(number):
            call()
        end = time.perf_counter()
        times.append((end - start) / number)
        if end >= stop:
            return times


def measure(
    calls: dict[Side, Callable[[], object]],
    seconds: float,
    rounds: int = ROUNDS,
    enter: Callable[[Side], object] = lambda side: None,
) -> dict[Side, Times]:
    """Best and median seconds of one call of each side. The sides take turns for so many seconds and at least so many
    rounds.

    The median is that of calls that are timed one at a time. Short calls are also timed several at a time, where the
    clock costs less; then their best is found there. `enter` is called with the side before each turn and is not timed.
    The benchmarks in bench/ use this function too.
    """
    numbers: dict[Side, int] = {}
    best = dict.fromkeys(calls, float("inf"))
    single: dict[Side, list[float]] = {side: [] for side in calls}
    for side, call in calls.items():
        enter(side)
        numbers[side] = 1 + int(BATCH / min(turn(call, 1)))
    deadline = time.perf_counter() + seconds
    while rounds > 0 or time.perf_counter() < deadline:
        for side, call in calls.items():
            time.sleep(PAUSE)
            enter(side)
            times = turn(call, 1)
            single[side].extend(times)
            if numbers[side] > 1:
                times += turn(call, numbers[side])
            best[side] = min(best[side], *times)
        rounds -= 1
    return {side: Times(best[side], median(single[side])) for side in calls}


def compare(
    rows: int, classes: int, dtype: str, gradient: bool, threads: list[int], seconds: float
) -> dict[str, float]:
    """Best seconds of the reference, of each number of threads, and of the copy or read, in this order."""
    rng = np.random.default_rng(0)
    logits: Any = rng.standard_normal((rows, classes), dtype=np.dtype(dtype).type)
    labels = rng.integers(classes, size=rows)
    out = np.zeros_like(logits)
    calls: dict[str, Callable[[], Any]] = {}
    if gradient:
        calls["NumPy"] = partial(reference.cross_entropy_with_grad, logits, labels, out=out)
        for n in threads:
            calls[threads_text(n)] = partial(cross_entropy_with_grad, logits, labels, out=out, num_threads=n)
    else:
        calls["NumPy"] = partial(reference.cross_entropy, logits, labels)
        for n in threads:
            calls[threads_text(n)] = partial(cross_entropy, logits, labels, num_threads=n)
    for side, call in calls.items():
        out.fill(np.nan)
        loss, grad = call() if gradient else (call(), None)
        verify(side, loss, grad, logits, labels)
    calls["limit"] = partial(np.copyto, out, logits) if gradient else logits.max
    return {side: times.best for side, times in measure(calls, seconds).items()}


def threads_text(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def time_text(seconds: float) -> str:
    scale, unit = (1e6, "us") if seconds < 999.5e-6 else (1e3, "ms") if seconds < 0.9995 else (1, "s")
    return f"{seconds * scale:#.3g}".rstrip(".") + f" {unit}"


def show_progress(text: str) -> None:
    """Print a line that the next one overwrites, if stderr is a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text:<60}\r")
        sys.stderr.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases: takes a few seconds")
    quick = parser.parse_args().quick
    show_config()
    config: Any = show_config(mode="dicts")
    threads = sorted({1, config["threads"]})
    cases, seconds = (QUICK_CASES, QUICK_SECONDS) if quick else (CASES, SECONDS)
    print(f"\n{__package__} against its NumPy reference: time of a call and speed-up")
    done = 0
    for gradient, title, limit in ((True, "loss + gradient", "copy"), (False, "forward", "read")):
        titles = "".join(f"{threads_text(n):>11}{'':>7}" for n in threads)
        print(f"\n{title:20}{'NumPy':>9}{titles}{limit:>11}")
        for rows, classes, dtype in cases:
            name = f"{rows} x {classes}{' float64' * (dtype == 'float64')}"
            show_progress(f"[{done}/{2 * len(cases)}] {name}, {title} ...")
            try:
                theirs, *ours, least = compare(rows, classes, dtype, gradient, threads, seconds).values()
            except ArithmeticError as error:
                show_progress("")
                print(f"FAILED: {error}", file=sys.stderr)
                return 1
            show_progress("")
            done += 1
            cells = "".join(f"{time_text(best):>11}{f'{theirs / best:.1f}x':>7}" for best in ours)
            print(f"{name:20}{time_text(theirs):>9}{cells}{time_text(least):>11}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
