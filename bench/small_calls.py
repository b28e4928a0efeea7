"""Compare small calls with options, and calls of other functions, with the plain call, and print a markdown table.

    python bench/small_calls.py [--seconds 20] [--rows 32] [--classes 10]

The plain call is `cross_entropy_with_grad(logits, labels)` with int64 labels. All calls run interleaved on one array
that stays in the cache, and the best time of each counts; the last column compares the medians of single calls. What is
measured is what a call costs besides its kernels."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from peers import describe

import fastce
from fastce.__main__ import measure

PLAIN = "cross_entropy_with_grad(x, labels)"


def calls(rows: int, classes: int) -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, classes), dtype=np.float32)
    labels = rng.integers(classes, size=rows)
    probabilities = fastce.softmax(x)
    row, label = x[0], int(labels[0])
    layer = fastce.CrossEntropyLoss()

    def forward_and_backward() -> Any:
        layer(x, labels)
        return layer.backward()

    with_grad = partial(fastce.cross_entropy_with_grad, x)
    return {
        PLAIN: partial(with_grad, labels),
        "int32 labels": partial(with_grad, labels.astype(np.int32)),
        "out": partial(with_grad, labels, out=np.empty_like(x)),
        "label_smoothing": partial(with_grad, labels, label_smoothing=0.1),
        'reduction="none"': partial(with_grad, labels, reduction="none"),
        "z_loss": partial(with_grad, labels, z_loss=1e-4),
        "ignore_index=0": partial(with_grad, labels, ignore_index=0),
        "weight": partial(with_grad, labels, weight=np.ones(classes)),
        "sample_weight": partial(with_grad, labels, sample_weight=np.ones(rows)),
        "probabilities": partial(with_grad, probabilities),
        "CrossEntropyLoss() call + backward": forward_and_backward,
        "cross_entropy(x, labels)": partial(fastce.cross_entropy, x, labels),
        "cross_entropy of one row": partial(fastce.cross_entropy, row, label),
        "softmax": partial(fastce.softmax, x),
        "logsumexp": partial(fastce.logsumexp, x),
        "binary_cross_entropy_with_grad": partial(fastce.binary_cross_entropy_with_grad, x, probabilities),
        "predict": partial(fastce.predict, x),
        "x.argmax(-1)": partial(x.argmax, -1),
        "one_hot": partial(fastce.one_hot, labels, classes),
        "np.eye(classes, dtype)[labels]": lambda: np.eye(classes, dtype=np.float32)[labels],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="in all (default %(default)s)")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    arguments = parser.parse_args()
    times = measure(calls(arguments.rows, arguments.classes), arguments.seconds)
    print(f"{describe()}\n\n| {arguments.rows} x {arguments.classes} float32 | us | of the plain call | medians |")
    print("|---|---|---|---|")
    for name, (best, median) in times.items():
        plain = times[PLAIN]
        print(f"| {name} | {best * 1e6:.2f} | {best / plain.best:.2f}x | {median / plain.median:.2f}x |")


if __name__ == "__main__":
    main()
