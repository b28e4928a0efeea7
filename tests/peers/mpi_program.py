"""What each process of tests/peers/test_mpi.py runs: calls on its part, compared with fastce on the whole array."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from mpi4py import MPI

import fastce
from fastce.integrations import mpi

WORLD = MPI.COMM_WORLD
ROWS, CLASSES = 40, 23


def parts_of(size: int) -> list[list[int]]:
    """Ways to divide the classes: even, uneven, and with processes that have none."""
    even = [CLASSES // size + (k < CLASSES % size) for k in range(size)]
    uneven = [1] * (size - 1) + [CLASSES - size + 1]
    none = [0] * (size - 1) + [CLASSES]
    return [even, uneven, none, none[::-1]]


def close(got: Any, want: Any, dtype: Any, about: object) -> None:
    tolerance = {np.float16: 1e-3, np.float32: 3e-6, np.float64: 1e-13}[dtype]
    np.testing.assert_allclose(
        np.asarray(got, np.float64), np.asarray(want, np.float64), rtol=tolerance, atol=tolerance, err_msg=str(about)
    )


def every_option(comm: MPI.Comm) -> None:
    rng = np.random.default_rng(0)  # the same on all processes
    base = rng.normal(0, 5, (ROWS, CLASSES))
    base[1, 3:9] = -np.inf
    base[2] = 1.5  # ties
    base[3, 5] = 300  # a confident row
    labels = rng.integers(CLASSES, size=ROWS)
    labels[::6] = -100
    labels[3], labels[1] = 5, 0
    weight, sample = rng.random(CLASSES), rng.random(ROWS)
    sample[4] = 0
    for dtype in (np.float32, np.float64, np.float16):
        x = base.astype(dtype)
        for options in (
            {},
            {"reduction": "sum", "upstream": 3.0},
            {"reduction": "none", "upstream": sample},
            {"weight": weight, "label_smoothing": 0.1, "z_loss": 0.01, "sample_weight": sample},
            {"temperature": 0.7, "softcap": 20.0, "normalizer": 9.0},
            {"ignore_index": 3, "subnormals": "flush"},
        ):
            given = x
            if {"label_smoothing", "softcap"} & options.keys():
                given = np.where(np.isinf(x), dtype(-9), x)  # a masked class that smoothing gives a target is infinite
            t = np.maximum(labels, 0) if options.get("ignore_index") == 3 else labels
            want = fastce.cross_entropy_with_grad(given, t, **options)
            forward = {k: v for k, v in options.items() if k not in ("upstream", "subnormals")}
            for counts in parts_of(comm.size):
                start = sum(counts[: comm.rank])
                part = slice(start, start + counts[comm.rank])
                for mine in (np.ascontiguousarray(given[:, part]), np.asfortranarray(given[:, part])):
                    for who in (comm, mpi.Classes(comm, counts[comm.rank])):
                        loss, grad = mpi.cross_entropy_with_grad(mine, t, comm=who, **options)
                        about = (options.keys(), counts, comm.rank, dtype)
                        close(loss, want[0], dtype, about)
                        assert grad.dtype == dtype and grad.shape == mine.shape
                        close(grad, want[1][:, part], dtype, about)
                        assert np.array_equal(mpi.cross_entropy(mine, t, comm=who, **forward), loss)
                loss, grad = mpi.cross_entropy_with_grad(given[:, part].T, t, comm=comm, axis=0, **options)
                close(grad.T, want[1][:, part], dtype, "axis 0")
                same = comm.allgather(np.asarray(loss).tobytes())
                assert len(set(same)) == 1, "the loss differs between processes"


def special_rows(comm: MPI.Comm) -> None:
    x = np.zeros((5, CLASSES))
    x[0] = -np.inf
    x[1, -1], x[2, 0], x[3, 7] = np.nan, np.inf, np.nan
    labels = np.array([0, 1, 2, -100, 4])
    want = fastce.cross_entropy_with_grad(x, labels, reduction="none")
    for counts in parts_of(comm.size):
        start = sum(counts[: comm.rank])
        part = slice(start, start + counts[comm.rank])
        loss, grad = mpi.cross_entropy_with_grad(x[:, part], labels, comm=comm, reduction="none")
        np.testing.assert_allclose(loss, want[0], rtol=1e-14)
        np.testing.assert_allclose(grad, want[1][:, part], rtol=1e-13, atol=1e-16)


def rows_too() -> None:
    """Rows and classes: a grid of processes, of two columns if their number is even."""
    columns = 2 if WORLD.size % 2 == 0 else 1
    comm, rows_comm = WORLD.Split(WORLD.rank // columns), WORLD.Split(WORLD.rank % columns)
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(ROWS, CLASSES)), rng.integers(CLASSES, size=ROWS)
    labels[::5] = -100
    sample = rng.random(ROWS)
    rows = np.array_split(np.arange(ROWS), rows_comm.size)[rows_comm.rank]
    if rows_comm.size > 1 and rows_comm.rank == 0:
        rows = rows[:0]  # a process without rows
    elif rows_comm.rank == 1:
        rows = np.concatenate([np.array_split(np.arange(ROWS), rows_comm.size)[0], rows])
    part = np.array_split(np.arange(CLASSES), comm.size)[comm.rank]
    for options in ({}, {"sample_weight": sample}, {"normalizer": 50.0}, {"reduction": "sum"}):
        want = fastce.cross_entropy_with_grad(x, labels, **options)
        mine = options | ({"sample_weight": sample[rows]} if "sample_weight" in options else {})
        loss, grad = mpi.cross_entropy_with_grad(
            x[np.ix_(rows, part)], labels[rows], comm=comm, rows_comm=rows_comm, **mine
        )
        close(loss, want[0], np.float64, options)
        close(grad, want[1][np.ix_(rows, part)], np.float64, options)


def errors(comm: MPI.Comm) -> None:
    """The same error on all, or on one and another one on the others. Nobody waits."""
    x, labels = np.zeros((3, 4)), np.zeros(3, int)
    for wrong, error, text in (
        ({"labels": [0, 4 * comm.size, 1]}, IndexError, r"labels[1] is"),
        ({"labels": [0, 1]}, ValueError, "labels has shape (2,)"),
        ({"labels": [0.0, 1.0, 2.0]}, TypeError, "labels has dtype float64"),
        ({"temperature": 0}, ValueError, "temperature is 0"),
        ({"reduction": "avg"}, ValueError, "reduction is 'avg'"),
        ({"subnormals": "zero"}, ValueError, "subnormals is 'zero'"),
        ({"axis": 5}, ValueError, "axis is 5"),
        ({"logits": None}, TypeError, "logits is None"),
        ({"weight": np.ones(3)}, ValueError, "weight has shape (3,)"),
    ):
        for everywhere in (True, False):
            arguments = {"logits": x, "labels": labels, "comm": comm, "rows_comm": WORLD}
            if not everywhere and np.shape(wrong.get("labels", labels)) != (3,):
                continue  # labels must have the same shape everywhere
            if everywhere or comm.rank == comm.size - 1:
                arguments |= wrong
            try:
                mpi.cross_entropy_with_grad(arguments.pop("logits"), arguments.pop("labels"), **arguments)
            except error as found:
                assert text in str(found), found
            except RuntimeError as found:
                assert not everywhere and "raised an error" in str(found), found
            else:
                raise AssertionError(f"no error for {wrong}")
    try:
        mpi.Classes(comm, -1 if comm.rank == 0 else 3)
    except (ValueError, RuntimeError) as found:
        assert "count is -1" in str(found) if comm.rank == 0 else "process 0 of comm" in str(found)
    else:
        raise AssertionError("no error for a negative count")


def few_operations(comm: MPI.Comm) -> None:
    """Two for each call with Classes, of at most 48 bytes a row."""

    class Counting:
        def __init__(self) -> None:
            self.rank, self.size, self.sizes = comm.rank, comm.size, []

        def Allgather(self, *arguments: Any) -> None:
            comm.Allgather(*arguments)

        def Allreduce(self, send: Any, array: np.ndarray, operation: Any) -> None:
            self.sizes.append(array.nbytes)
            comm.Allreduce(send, array, operation)

    counting: Any = Counting()
    classes = mpi.Classes(counting, 4)
    mpi.cross_entropy_with_grad(np.zeros((100, 4)), np.zeros(100, int), comm=classes, label_smoothing=0.1, z_loss=0.1)
    assert len(counting.sizes) == 2
    assert sum(counting.sizes) <= 48 * 100


if __name__ == "__main__":
    every_option(WORLD)
    special_rows(WORLD)
    rows_too()
    errors(WORLD)
    few_operations(WORLD)
    print(f"process {WORLD.rank} of {WORLD.size} is done", flush=True)
    sys.exit(0)
