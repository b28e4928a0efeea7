"""Compare the loss of a linear layer with and without its logits.

    python bench/linear.py [--shape 4096x512x32000] [--chunk-mib 256 128 64 32] [--repeats 3] [--threads 1] [--peers]

A shape is rows x features x classes. Times are multiples of the time of NumPy's bare products, three for loss and
gradients, one for the loss: medians of interleaved calls, CPU time with one thread and wall time with more. Memory is
the peak that NumPy's arrays take above arguments and results. Buffers of results are reused by all. With --peers,
PyTorch computes the same, with logits and with `torch.nn.functional.linear_cross_entropy` where it is there."""

from __future__ import annotations

import argparse
import os
import sys

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shape", nargs="+", default=["4096x512x32000", "2048x1024x128256"])
parser.add_argument("--chunk-mib", nargs="+", type=float, default=[256, 128, 64, 32])
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--peers", action="store_true", help="PyTorch too")
parser.add_argument("--smoke", action="store_true", help="small shapes, one call of each")
OPTIONS = parser.parse_args()
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(OPTIONS.threads)  # before NumPy is imported

import time  # noqa: E402
import tracemalloc  # noqa: E402
from collections.abc import Callable  # noqa: E402
from statistics import median  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

import fastce  # noqa: E402

clock = time.process_time if OPTIONS.threads == 1 else time.perf_counter
Calls = dict[str, Callable[[], Any]]


def calls_of(rows: int, features: int, classes: int) -> tuple[Calls, Calls]:
    """Those that give loss and gradients, and those that give the loss. The first of each is what the others are
    compared with."""
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((rows, features), dtype=np.float32)
    weight = rng.standard_normal((classes, features), dtype=np.float32) * np.float32(3 / features**0.5)
    confident = weight * np.float32(20 / 3)  # logits of standard deviation 20
    bias, labels = rng.standard_normal(classes, dtype=np.float32), rng.integers(classes, size=rows)
    half = np.where(np.arange(rows) % 2, labels, -100)
    out = fastce.LinearGrads(np.zeros_like(hidden), np.zeros_like(weight), None)
    with_bias = out._replace(bias=np.zeros_like(bias))
    logits = np.zeros((rows, classes), np.float32)

    def products() -> None:
        np.matmul(hidden, weight.T, out=logits)
        np.matmul(logits, weight, out=out.hidden)
        np.matmul(logits.T, hidden, out=out.weight)

    def naive() -> None:
        new = hidden @ weight.T
        fastce.cross_entropy_with_grad(new, labels, out=new)
        np.matmul(new, weight, out=out.hidden)
        np.matmul(new.T, hidden, out=out.weight)

    def linear(
        weight: Any = weight, labels: Any = labels, chunk: float | None = None, out: Any = out, **options: Any
    ) -> Callable[[], Any]:
        size = None if chunk is None else int(chunk * 2**20)
        return lambda: fastce.linear_cross_entropy_with_grad(
            hidden, weight, labels, out=out, chunk_bytes=size, **options
        )

    kept = fastce.LinearCrossEntropyLoss()

    def layer() -> None:
        kept(hidden, weight, labels)
        kept.backward()

    both: Calls = {"three products": products, "with logits": naive, "linear_cross_entropy_with_grad": linear()}
    both |= {f"chunks of {mib:g} MiB": linear(chunk=mib) for mib in OPTIONS.chunk_mib}
    both |= {
        "bias": linear(out=with_bias, linear_bias=bias),
        "logits of standard deviation 20": linear(confident),
        "half of the rows ignored": linear(labels=half),
        "layer": layer,
    }
    loss: Calls = {
        "one product": lambda: np.matmul(hidden, weight.T, out=logits),
        "linear_cross_entropy": lambda: fastce.linear_cross_entropy(hidden, weight, labels),
        "evaluate_linear": lambda: fastce.evaluate_linear(hidden, weight, labels),
    }
    if OPTIONS.peers:
        both |= of_torch(hidden, weight, labels)
    return both, loss


def of_torch(hidden: Any, weight: Any, labels: Any) -> Calls:
    import torch

    torch.set_num_threads(OPTIONS.threads)
    h, w = torch.from_numpy(hidden).requires_grad_(), torch.from_numpy(weight).requires_grad_()
    y, functional = torch.from_numpy(labels), torch.nn.functional

    def run(loss: Callable[[], Any]) -> Callable[[], None]:
        def step() -> None:
            h.grad = w.grad = None
            loss().backward()

        return step

    calls = {"PyTorch with logits": run(lambda: functional.cross_entropy(functional.linear(h, w), y))}
    if hasattr(functional, "linear_cross_entropy"):
        calls["PyTorch linear_cross_entropy"] = run(lambda: functional.linear_cross_entropy(h, w, y))
    return calls


def peak_of(call: Callable[[], Any]) -> float:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main() -> int:
    shapes = ["64x16x1000"] if OPTIONS.smoke else OPTIONS.shape
    for shape in shapes:
        print(f"\n{shape}, {OPTIONS.threads} thread(s)\n\n| call | time | peak MiB |\n|---|---|---|")
        for calls in calls_of(*map(int, shape.split("x"))):
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(1 if OPTIONS.smoke else OPTIONS.repeats):
                for name, call in calls.items():
                    start = clock()
                    call()
                    times[name].append(clock() - start)
            first = median(next(iter(times.values())))
            for name, call in calls.items():
                peak = "" if "PyTorch" in name else f"{peak_of(call):.0f}"
                print(f"| {name} | {median(times[name]) / first:.2f} | {peak} |", flush=True)
            print(f"\nof {first:.2f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
