"""What large problems cost: a vocabulary with and without logits, and logits in a file.

    python bench/scale.py [--rows 2048] [--features 512] [--gib 4] [--folder /tmp] [--picture memory.png]

First table: loss and gradients of hidden states and a weight, for vocabularies of several sizes. Time is the median of
three calls that take turns. Memory is the peak that NumPy's arrays take above arguments and results.

Second table: the loss of logits in a memory-mapped file of so many GiB, in one call, and in parts. The memory of each
part is given back to the system. The file has been read before. `resident` is how much the process grows; that of a
single call is page cache, which the system takes back when it needs memory. Linux only."""

from __future__ import annotations

import argparse
import mmap
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import fastce

VOCABULARIES = (8_000, 32_000, 128_256)
CLASSES = 32_000  # of the logits in the file
PART = 2**28  # bytes


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_of(call: Callable[[], Any]) -> float:
    """MiB."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def vocabularies(rows: int, features: int, sizes: Sequence[int]) -> list[tuple[int, float, float]]:
    """Prints the first table. Returns the peaks for each size, with logits and without."""
    print(f"\nLoss and gradients of {rows} rows and {features} features, float32:\n")
    print("| vocabulary | with logits | | without | | time |\n|---|---|---|---|---|---|")
    rng, peaks = np.random.default_rng(0), []
    for classes in sizes:
        hidden = rng.standard_normal((rows, features), dtype=np.float32)
        weight = rng.standard_normal((classes, features), dtype=np.float32) / np.float32(features**0.5)
        labels = rng.integers(classes, size=rows)
        out = fastce.LinearGrads(np.zeros_like(hidden), np.zeros_like(weight), None)

        def with_logits(h: Any = hidden, w: Any = weight, t: Any = labels, out: Any = out) -> None:
            logits = h @ w.T
            fastce.cross_entropy_with_grad(logits, t, out=logits)
            np.matmul(logits, w, out=out.hidden)
            np.matmul(logits.T, h, out=out.weight)

        def without(h: Any = hidden, w: Any = weight, t: Any = labels, out: Any = out) -> None:
            fastce.linear_cross_entropy_with_grad(h, w, t, out=out, chunk_bytes=64 * 2**20)

        times = [(timed(with_logits), timed(without)) for _ in range(3)]
        mine, theirs = median(t for _, t in times), median(t for t, _ in times)
        peaks.append((classes, peak_of(with_logits), peak_of(without)))
        print(
            f"| {classes:,} | {theirs:.2f} s | {peaks[-1][1]:.0f} MiB | {mine:.2f} s | {peaks[-1][2]:.0f} MiB "
            f"| {mine / theirs:.2f} |",
            flush=True,
        )
    return peaks


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def in_parts(logits: np.memmap, labels: np.ndarray) -> float:
    """The sum of the losses, with few pages of the file in memory at a time."""
    rows, total = PART // (logits.shape[1] * logits.itemsize), 0.0
    for start in range(0, len(logits), rows):
        total += float(
            fastce.cross_entropy(logits[start : start + rows], labels[start : start + rows], reduction="sum")
        )
        logits._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    return total


def memory_map(gib: float, folder: str) -> None:
    rows = int(gib * 2**30) // (CLASSES * 4)
    rng = np.random.default_rng(0)
    some, labels = rng.standard_normal((64, CLASSES), dtype=np.float32), rng.integers(CLASSES, size=rows)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "logits"
        with path.open("wb") as file:
            for start in range(0, rows, len(some)):
                file.write(some[: rows - start].tobytes())
        print(f"\n{rows} x {CLASSES} logits in a file of {gib:g} GiB:\n")
        print("| call | time | resident |\n|---|---|---|")
        for title, call in (
            ("logits.max()", lambda x: x.max()),
            ("cross_entropy", lambda x: fastce.cross_entropy(x, labels, reduction="sum")),
            (f"cross_entropy of parts of {PART // 2**20} MiB", lambda x: in_parts(x, labels)),
        ):
            logits = np.memmap(path, np.float32, "r", shape=(rows, CLASSES))
            before = resident()
            seconds = timed(lambda logits=logits, call=call: call(logits))
            print(f"| {title} | {seconds:.2f} s | {resident() - before:.0f} MiB |", flush=True)
            del logits


def draw(peaks: list[tuple[int, float, float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    sizes, theirs, mine = zip(*peaks, strict=True)
    axes.plot(sizes, theirs, "o-", label="with logits")
    axes.plot(sizes, mine, "o-", label="linear_cross_entropy_with_grad, chunks of 64 MiB")
    axes.set(xlabel="vocabulary", ylabel="MiB above arguments and results", xscale="log", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--folder", default=None, help="where the file is made; default: that of temporary files")
    parser.add_argument("--picture", help="draw memory against vocabulary; needs matplotlib")
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rows, arguments.features, arguments.gib = 32, 8, 0.01
    peaks = vocabularies(arguments.rows, arguments.features, VOCABULARIES[:2] if arguments.smoke else VOCABULARIES)
    if sys.platform == "linux":
        memory_map(arguments.gib, arguments.folder)
    if arguments.picture:
        draw(peaks, arguments.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
