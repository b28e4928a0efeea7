"""Softmax regression on an array that is larger than the memory that is used: epochs of gradient descent with Dask.

    python bench/softmax_regression_dask.py [--rows 1000000] [--epochs 12] [--folder /tmp/store] [--processes 2]

Features are drawn and written to a Zarr store, chunk by chunk. In each epoch Dask reads every chunk once: logits, loss,
their gradient and its products follow in tasks, and nothing with as many rows as the store is ever in memory. Each
epoch has a progress bar. With --processes, the tasks run in that many worker processes, and the address of the
dashboard is printed, where they are called fastce-cross-entropy-with-grad, fastce-denominator, fastce-grad and
fastce-loss.

The exit status is 1 if less than 97 % of what the true coefficients achieve is reached, or if the process needed more
memory than half of the store."""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import tempfile
import time

import dask
import dask.array as da
import numpy as np
import zarr
from dask.diagnostics import ProgressBar

from fastce.integrations.dask import cross_entropy_with_grad, evaluate

CHUNK, FEATURES, CLASSES = 20000, 128, 20
STEP, MOMENTUM = 2.0, 0.7
NEEDED_ACCURACY, NEEDED_MEMORY = 0.97, 1 / 2


def written(folder: str, rows: int) -> tuple[da.Array, da.Array, np.ndarray]:
    """Features and labels in a store, and the coefficients that the labels were drawn with."""
    rng = np.random.default_rng(0)
    coef = rng.standard_normal((FEATURES, CLASSES), dtype=np.float32) / np.float32(np.sqrt(FEATURES)) * 4
    features = zarr.open(f"{folder}/features", mode="w", shape=(rows, FEATURES), chunks=(CHUNK, FEATURES), dtype="f4")
    labels = zarr.open(f"{folder}/labels", mode="w", shape=(rows,), chunks=(CHUNK,), dtype="i4")
    for start in range(0, rows, CHUNK):
        x = rng.standard_normal((min(CHUNK, rows - start), FEATURES), dtype=np.float32)
        features[start : start + len(x)] = x
        labels[start : start + len(x)] = (x @ coef + rng.gumbel(size=(len(x), CLASSES))).argmax(axis=1)
    return da.from_zarr(f"{folder}/features"), da.from_zarr(f"{folder}/labels"), coef


def logits_of(x: da.Array, coef: np.ndarray, bias: np.ndarray) -> da.Array:
    return x.map_blocks(np.matmul, coef, chunks=(x.chunks[0], (CLASSES,)), meta=np.empty((0, 0), np.float32)) + bias


def epoch(x: da.Array, labels: da.Array, coef: np.ndarray, bias: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss and its gradient with respect to coefficients and biases, over all rows."""
    loss, grad = cross_entropy_with_grad(logits_of(x, coef, bias), labels)
    return dask.compute(loss, da.tensordot(x, grad, axes=(0, 0)), grad.sum(axis=0))


def peak_memory() -> float:
    """In MiB, of this process or the largest of its children."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return max(peaks) / (1024 if sys.platform != "darwin" else 1024**2)


def trained(x: da.Array, labels: da.Array, epochs: int, bar: bool) -> tuple[np.ndarray, np.ndarray]:
    coef, bias = np.zeros((FEATURES, CLASSES), np.float32), np.zeros(CLASSES, np.float32)
    velocities = [np.zeros_like(coef), np.zeros_like(bias)]
    for number in range(epochs):
        start = time.perf_counter()
        with ProgressBar(dt=0.5) if bar else contextlib.nullcontext():
            loss, *gradients = epoch(x, labels, coef, bias)
        for parameter, velocity, gradient in zip((coef, bias), velocities, gradients, strict=True):
            velocity *= MOMENTUM
            velocity -= STEP * gradient
            parameter += velocity
        print(f"epoch {number + 1:2}  loss {loss:.4f}  {time.perf_counter() - start:.2f} s", flush=True)
    return coef, bias


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--folder", help="where the store is written; default: a temporary folder")
    parser.add_argument("--processes", type=int, help="worker processes of dask.distributed; default: threads")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or stack.enter_context(tempfile.TemporaryDirectory())
        before = peak_memory()
        x, labels, true_coef = written(folder, options.rows)
        print(f"store: {x.nbytes / 2**20:.0f} MiB in {x.npartitions} chunks")
        if options.processes:
            from distributed import Client, LocalCluster

            cluster = stack.enter_context(LocalCluster(n_workers=options.processes, threads_per_worker=1))
            print(f"dashboard: {stack.enter_context(Client(cluster)).dashboard_link}")
        coef, bias = trained(x, labels, options.epochs, not options.processes)
        nothing = np.zeros_like(bias)
        found, best = dask.compute(
            evaluate(logits_of(x, coef, bias), labels), evaluate(logits_of(x, true_coef, nothing), labels)
        )
    needed = peak_memory() - before
    print(f"trained: {found}\ntrue coefficients: {best}")
    print(f"peak memory: {needed:.0f} MiB more than at the start, {needed * 2**20 / x.nbytes:.2f} of the store")
    enough_memory = options.processes or needed * 2**20 < NEEDED_MEMORY * x.nbytes
    return 0 if found.accuracy >= NEEDED_ACCURACY * best.accuracy and enough_memory else 1


if __name__ == "__main__":
    sys.exit(main())
