"""Compare the speed of softmax and related functions with that of NumPy or SciPy, and print a markdown table.

    python bench/chapter.py [--seconds 2] [--rows 4096] [--classes 1000]

The results are verified first. Every call returns a new array. bench/test_chapter.py times the same functions with
pytest-benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from peers import THREADS, describe

import fastce
from fastce.__main__ import measure


class Pair(NamedTuple):
    name: str
    ours: Callable[[int], Any]  # takes the number of threads
    theirs_name: str
    theirs: Callable[[], Any]
    size: int

    def verify(self) -> None:
        """Check that both give the same results, up to the rounding of float32 in means of many terms."""
        for mine, other in zip(_parts(self.ours(1)), _parts(self.theirs()), strict=True):
            scale = np.abs(other[np.isfinite(other)]).max()
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5 * scale)


def _parts(result: Any) -> list[np.ndarray]:
    return [np.asarray(part, dtype=np.float64) for part in (result if isinstance(result, tuple) else (result,))]


def pairs(rows: int, classes: int) -> Iterator[Pair]:
    """Functions of fastce, each with that of SciPy if there is one, or else with a stable NumPy expression."""
    from scipy import special

    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, classes), dtype=np.float32) * 3
    c = (rng.random((rows, classes)) < 0.1).astype(np.float32)
    labels = rng.integers(0, classes, rows)
    p = special.softmax(x, axis=-1)

    def sigmoid_loss() -> Any:
        return np.mean(np.maximum(x, 0) - x * c + np.log1p(np.exp(-np.abs(x))), dtype=np.float64)

    def sigmoid_loss_grad() -> Any:
        e = np.exp(-np.abs(x))
        loss = np.mean(np.maximum(x, 0) - x * c + np.log1p(e), dtype=np.float64)
        return loss, (np.where(x >= 0, 1, e) / (1 + e) - c) / x.size

    def one_hot() -> Any:
        return np.eye(classes, dtype=np.float32)[labels]

    f = fastce
    yield Pair("softmax", lambda n: f.softmax(x, num_threads=n), "SciPy", lambda: special.softmax(x, axis=-1), x.size)
    yield Pair(
        "log_softmax",
        lambda n: f.log_softmax(x, num_threads=n),
        "SciPy",
        lambda: special.log_softmax(x, axis=-1),
        x.size,
    )
    yield Pair(
        "logsumexp", lambda n: f.logsumexp(x, num_threads=n), "SciPy", lambda: special.logsumexp(x, axis=-1), x.size
    )
    yield Pair(
        "softmax_grad",
        lambda n: f.softmax_grad(c, p, num_threads=n),
        "NumPy",
        lambda: p * (c - np.sum(c * p, axis=-1, keepdims=True)),
        x.size,
    )
    yield Pair(
        "two-term, sigmoid",
        lambda n: f.binary_cross_entropy(x, c, num_threads=n),
        "NumPy",
        sigmoid_loss,
        x.size,
    )
    yield Pair(
        "two-term, sigmoid, + gradient",
        lambda n: f.binary_cross_entropy_with_grad(x, c, num_threads=n),
        "NumPy",
        sigmoid_loss_grad,
        x.size,
    )
    yield Pair("one_hot", lambda n: f.one_hot(labels, classes), "NumPy", one_hot, x.size)
    yield Pair("predict", lambda n: f.predict(x), "NumPy", lambda: np.argmax(x, axis=-1), x.size)


def table(rows: int, classes: int, seconds: float) -> str:
    """A markdown table of the best times, with the given time for each line."""
    one, many = THREADS
    lines = [f"| {rows} x {classes} float32, ns per logit | fastce, {one} / {many} threads | NumPy or SciPy |"]
    lines.append("|---|---|---|")
    for pair in pairs(rows, classes):
        pair.verify()
        calls = {one: partial(pair.ours, one), many: partial(pair.ours, many), pair.theirs_name: pair.theirs}
        a, b, other = (times.best / pair.size * 1e9 for times in measure(calls, seconds).values())
        ratios = f"({other / a:.1f}x / {other / b:.1f}x)"
        lines.append(f"| {pair.name} | {a:.3g} / {b:.3g} | {pair.theirs_name} {other:.3g} {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each line (default 2)")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=1000)
    args = parser.parse_args()
    print(f"{describe()}\n\n{table(args.rows, args.classes, args.seconds)}")


if __name__ == "__main__":
    main()
