"""Compare other paths through fastce with the plain call, and print a markdown table of multiples of its time.

    python bench/paths.py [--seconds 60] [--threads 1] [--only two-term] [--shape 4096x1000]

The plain call is `cross_entropy_with_grad(logits, labels, out=out)` with int64 labels, on an array in C order of the same
shape and dtype. In each shape all calls run interleaved, and the best time of each counts. Every call that returns an
array of the logits' shape writes it to an `out` whose memory was touched before, in the memory order of the logits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from peers import describe

import fastce
from fastce.__main__ import measure

SHAPES = [(65536, 10, "float32"), (20000, 100, "float32"), (4096, 1000, "float32"), (4096, 1000, "float64")]
PLAIN = "plain call"
COPY = "np.copyto(out, logits)"
ARGMAX = "logits.argmax(-1)"


def calls(rows: int, classes: int, dtype: str, threads: int | None) -> dict[str, tuple[Callable[[], Any], str]]:
    """The calls by name, each with the multiple of another call that it is meant to stay below."""
    rng = np.random.default_rng(0)
    x = (3 * rng.standard_normal((rows, classes))).astype(dtype)
    labels = rng.integers(classes, size=rows)
    ignored = np.where(rng.random(rows) < 0.1, -100, labels)
    probabilities = fastce.softmax(x[::-1])
    y, log_y = fastce.softmax(x), fastce.log_softmax(x)
    upstream = rng.standard_normal((rows, classes)).astype(dtype)
    hot = labels[:, None] == np.arange(classes)
    weight, pos_weight = rng.random(classes) + 0.5, rng.random(classes) + 0.5
    out, scores = np.zeros_like(x), np.zeros(rows, dtype)
    _, stats = fastce.cross_entropy(x, labels, return_stats=True)
    layer = fastce.CrossEntropyLoss(num_threads=threads)

    # Classes on axis 0 of (classes, rows), in C order: in memory these are the logits in Fortran order.
    x0, y0, log_y0, upstream0, out0 = (np.ascontiguousarray(a.T) for a in (x, y, log_y, upstream, out))

    def forward_and_backward() -> Any:
        layer(x, labels)
        return layer.backward(out=out)

    def of(name: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
        return partial(getattr(fastce, name), *arguments, num_threads=threads, **options)

    both = "cross_entropy_with_grad"
    two_term = partial(of, "binary_cross_entropy_with_grad", x, out=out)
    everything = {"weight": weight, "label_smoothing": 0.1, "z_loss": 1e-4, "sample_weight": np.ones(rows)}
    return {
        PLAIN: (of(both, x, labels, out=out), ""),
        COPY: (partial(np.copyto, out, x), ""),
        "softmax two-term form, of probabilities": (two_term(probabilities, activation="softmax"), "4"),
        "softmax two-term form, of bool targets": (two_term(hot, activation="softmax"), "4"),
        "sigmoid two-term form, of probabilities": (two_term(probabilities), "1.8"),
        "sigmoid two-term form, of bool targets": (two_term(hot), "2"),
        "sigmoid two-term form, pos_weight": (two_term(probabilities, pos_weight=pos_weight), "2"),
        "softmax_grad": (of("softmax_grad", upstream, y, out=out), "1"),
        "log_softmax_grad": (of("log_softmax_grad", upstream, log_y, out=out), "1"),
        "softmax_grad, Fortran order": (of("softmax_grad", upstream0.T, y0.T, out=out0.T), "2"),
        "log_softmax_grad, Fortran order": (of("log_softmax_grad", upstream0.T, log_y0.T, out=out0.T), "2"),
        "softmax_grad, axis=0": (of("softmax_grad", upstream0, y0, axis=0, out=out0), "2"),
        "plain call, Fortran order": (of(both, x0.T, labels, out=out0.T), "1.5"),
        "softmax, axis=0": (of("softmax", x0, axis=0, out=out0), "1.5"),
        "log_softmax, axis=0": (of("log_softmax", x0, axis=0, out=out0), "1.5"),
        "softmax": (of("softmax", x, out=out), "1"),
        "log_softmax": (of("log_softmax", x, out=out), "1"),
        "weight": (of(both, x, labels, weight=weight, out=out), "1.3"),
        "label_smoothing": (of(both, x, labels, label_smoothing=0.1, out=out), "1.3"),
        "weight and label_smoothing": (of(both, x, labels, weight=weight, label_smoothing=0.1, out=out), "1.3"),
        "all options": (of(both, x, ignored, **everything, out=out), "1.5"),
        "probability targets": (of(both, x, probabilities, out=out), "1.4"),
        "probability targets, label_smoothing": (of(both, x, probabilities, label_smoothing=0.1, out=out), "1.4"),
        "bool one-hot targets": (of(both, x, hot, out=out), "1.4"),
        "forward": (of("cross_entropy", x, labels), "1"),
        "logsumexp": (of("logsumexp", x, out=scores), "1"),
        "backward from stats": (of("cross_entropy_grad", x, labels, stats=stats, out=out), "0.8"),
        "layer, call and backward": (forward_and_backward, "1.6"),
        ARGMAX: (partial(x.argmax, -1), ""),
        "predict": (of("predict", x), "0.7 argmax"),
    }


def shape_text(rows: int, classes: int, dtype: str) -> str:
    return f"{rows} x {classes} {dtype}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="0: automatic (default %(default)s)")
    parser.add_argument("--only", default="", help="paths whose name contains this")
    parser.add_argument("--shape", default="", help="shapes that begin with this, such as 4096x1000")
    arguments = parser.parse_args()
    shapes = [s for s in SHAPES if f"{s[0]}x{s[1]}x{s[2]}".startswith(arguments.shape)]
    table: dict[str, list[str]] = {}
    for shape in shapes:
        some = {
            name: call
            for name, call in calls(*shape, arguments.threads or None).items()
            if arguments.only in name or name in (PLAIN, COPY, ARGMAX)
        }
        best = measure({name: call for name, (call, _) in some.items()}, arguments.seconds / len(shapes))
        for name, (_, limit) in some.items():
            row = table.setdefault(name, [name, limit])
            multiple = best[name] / best[ARGMAX if limit.endswith("argmax") else PLAIN]
            nanoseconds = 1e9 * best[name] / (shape[0] * shape[1])
            row.append(f"{nanoseconds:.3f} ns" if name in (PLAIN, COPY, ARGMAX) else f"{multiple:.2f}")
    threads = f"{arguments.threads} threads" if arguments.threads > 1 else "1 thread" if arguments.threads else "automatic"
    heads = ["path", "at most", *(shape_text(*shape) for shape in shapes)]
    print(f"{describe()}\n{threads}")
    print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in table.values():
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
