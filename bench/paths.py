"""Compare other paths through fastce with the plain call, and print markdown tables of multiples of its time.

    python bench/paths.py [--seconds 60] [--threads 1] [--only two-term] [--shape 4096x1000]

The plain call is `cross_entropy_with_grad(logits, labels, out=out)` with int64 labels, on an array in C order of the
same shape and dtype. For each shape all calls run interleaved. A cell shows the multiple of the best time and, in
brackets, that of the median of single calls.

In the first table, every call that returns an array of the logits' shape writes it to an `out` whose memory was touched
before, in the memory order of the logits. The second table shows what a new array costs. One of 32 MiB or less is
usually memory that the process has used before; a larger one is new memory at each call."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from peers import describe

import fastce
from fastce.__main__ import measure

Shape = tuple[int, int, str]
Calls = dict[str, tuple[Callable[[], Any], str]]  # by name: the call, and the multiple that it is meant to stay below

SHAPES: list[Shape] = [
    (65536, 10, "float32"),
    (20000, 100, "float32"),
    (4096, 1000, "float32"),
    (4096, 1000, "float64"),
]
NEW_ARRAY_SHAPES: list[Shape] = [(4096, 1000, "float32"), (1024, 32000, "float32"), (512, 128256, "float32")]
SMOKE_ROWS = 8
ROUNDS = 5  # at least, however long the calls take
PLAIN = "plain call"
COPY = "np.copyto(out, logits)"
ARGMAX = "logits.argmax(-1)"
HALVES = [np.dtype(np.float16)]
with contextlib.suppress(ImportError):
    import ml_dtypes

    HALVES.append(np.dtype(ml_dtypes.bfloat16))


def calls(rows: int, classes: int, dtype: str, threads: int | None) -> Calls:
    """The plain call and all other paths. `predict` is compared with NumPy's argmax."""
    rng = np.random.default_rng(0)
    x = (3 * rng.standard_normal((rows, classes))).astype(dtype)
    labels = rng.integers(classes, size=rows)
    ignored = np.where(rng.random(rows) < 0.1, -100, labels)
    probabilities = fastce.softmax(x[::-1])
    y, log_y = fastce.softmax(x), fastce.log_softmax(x)
    upstream = rng.standard_normal((rows, classes)).astype(dtype)
    hess, vectors = np.zeros_like(x), np.ascontiguousarray(upstream[::-1])
    hot = labels[:, None] == np.arange(classes)
    weight, pos_weight = rng.random(classes) + 0.5, rng.random(classes) + 0.5
    out, scores = np.zeros_like(x), np.zeros(rows, dtype)
    _, stats = fastce.cross_entropy(x, labels, return_stats=True)
    layer = fastce.CrossEntropyLoss(num_threads=threads)

    # Classes on axis 0 of (classes, rows), in C order: in memory these are the logits in Fortran order.
    x0, y0, log_y0, upstream0, out0 = (np.ascontiguousarray(a.T) for a in (x, y, log_y, upstream, out))
    hess0, vectors0 = np.ascontiguousarray(hess.T), np.ascontiguousarray(vectors.T)

    def forward_and_backward() -> Any:
        layer(x, labels)
        return layer.backward(out=out)

    def of(name: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
        return partial(getattr(fastce, name), *arguments, num_threads=threads, **options)

    both = "cross_entropy_with_grad"
    two_term = partial(of, "binary_cross_entropy_with_grad", x, out=out)
    everything = {"weight": weight, "label_smoothing": 0.1, "z_loss": 1e-4, "sample_weight": np.ones(rows)}
    halves: Calls = {}
    for half in HALVES if dtype == "float32" else ():
        narrow = x.astype(half)
        halves[half.name] = of(both, narrow, labels, out=np.zeros_like(narrow)), "1"
        halves[f"{half.name}, forward"] = of("cross_entropy", narrow, labels), "0.6"
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
        "softmax, two axes": (of("softmax", x[:, None], axis=(1, 2), out=out[:, None]), "1"),
        "weight": (of(both, x, labels, weight=weight, out=out), "1.3"),
        "label_smoothing": (of(both, x, labels, label_smoothing=0.1, out=out), "1.3"),
        "temperature": (of(both, x, labels, temperature=0.7, out=out), "1.1"),
        "softmax, temperature": (of("softmax", x, temperature=0.7, out=out), "1.1"),
        "softcap": (of(both, x, labels, softcap=30.0, out=out), "2"),
        "softmax, softcap": (of("softmax", x, softcap=30.0, out=out), "2"),
        "entropy_with_grad, softcap": (of("entropy_with_grad", x, softcap=30.0, out=out), "2"),
        "kl_divergence_with_grad, softcap": (
            of("kl_divergence_with_grad", x, x[::-1].copy(), softcap=30.0, out=out),
            "3",
        ),
        "evaluate, softcap": (of("evaluate", x, labels, softcap=30.0), "2"),
        "subnormals flushed": (of(both, x, labels, subnormals="flush", out=out), "1.05"),
        "subnormals flushed, probability targets": (of(both, x, probabilities, subnormals="flush", out=out), "1.5"),
        "weight and label_smoothing": (of(both, x, labels, weight=weight, label_smoothing=0.1, out=out), "1.3"),
        "all options": (of(both, x, ignored, **everything, out=out), "1.5"),
        "probability targets": (of(both, x, probabilities, out=out), "1.4"),
        "probability targets, label_smoothing": (of(both, x, probabilities, label_smoothing=0.1, out=out), "1.4"),
        "bool one-hot targets": (of(both, x, hot, out=out), "1.4"),
        "gradient and Hessian diagonal": (of("cross_entropy_grad_hess", x, labels, out=(out, hess)), "1.6"),
        "gradient and Hessian diagonal, Fortran order": (
            of("cross_entropy_grad_hess", x0.T, labels, out=(out0.T, hess0.T)),
            "2",
        ),
        "Hessian times vectors": (of("cross_entropy_hvp", x, labels, vectors, out=out), "2"),
        "Hessian times vectors, Fortran order": (of("cross_entropy_hvp", x0.T, labels, vectors0.T, out=out0.T), "2"),
        "forward": (of("cross_entropy", x, labels), "1"),
        "logsumexp": (of("logsumexp", x, out=scores), "1"),
        "evaluate": (of("evaluate", x, labels), "0.8"),
        "entropy": (of("entropy", x), "1"),
        "entropy_with_grad": (of("entropy_with_grad", x, out=out), "1.3"),
        "entropy_with_grad, axis=0": (of("entropy_with_grad", x0, axis=0, out=out0), "1.5"),
        "kl_divergence": (of("kl_divergence", x, x[::-1].copy()), "2.2"),
        "kl_divergence_with_grad": (of("kl_divergence_with_grad", x, x[::-1].copy(), out=out), "2.2"),
        "kl_divergence_with_grad, temperature": (
            of("kl_divergence_with_grad", x, x[::-1].copy(), temperature=2.0, out=out),
            "2.5",
        ),
        "kl_divergence_with_grad, probabilities": (
            of("kl_divergence_with_grad", x, probabilities, targets="probabilities", out=out),
            "",
        ),
        "backward from stats": (of("cross_entropy_grad", x, labels, stats=stats, out=out), "0.8"),
        "layer, call and backward": (forward_and_backward, "1.6"),
        ARGMAX: (partial(x.argmax, -1), ""),
        "predict": (of("predict", x), "0.7 argmax"),
    } | halves


def new_array_calls(rows: int, classes: int, dtype: str, threads: int | None) -> Calls:
    """The plain call and the layer, with the gradient in an array that was used before or in a new one."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, classes), dtype=np.dtype(dtype).type)
    labels, out, in_place = rng.integers(classes, size=rows), np.zeros_like(x), x.copy()
    call = partial(fastce.cross_entropy_with_grad, x, labels, num_threads=threads)
    layers = {reuse: fastce.CrossEntropyLoss(num_threads=threads, reuse_grad=reuse) for reuse in (False, True)}

    def forward_and_backward(layer: fastce.CrossEntropyLoss) -> Any:
        layer(x, labels)
        return layer.backward()

    return {
        PLAIN: (partial(call, out=out), ""),
        COPY: (partial(np.copyto, out, x), ""),
        "logits.copy()": (x.copy, ""),
        "out=logits": (
            partial(fastce.cross_entropy_with_grad, in_place, labels, num_threads=threads, out=in_place),
            "",
        ),
        "without out": (call, ""),
        "layer with reuse_grad": (partial(forward_and_backward, layers[True]), ""),
        "layer": (partial(forward_and_backward, layers[False]), ""),
    }


def shape_text(rows: int, classes: int, dtype: str) -> str:
    return f"{rows} x {classes} {dtype}"


def table(
    make: Callable[[int, int, str, int | None], Calls],
    shapes: list[Shape],
    threads: int,
    seconds: float,
    rounds: int = ROUNDS,
    only: str = "",
) -> str:
    """A markdown table with a line for each call whose name contains `only`, measured for so many seconds in all."""
    lines: dict[str, list[str]] = {}
    goals = False
    for column, shape in enumerate(shapes, start=2):
        some = {
            name: call
            for name, call in make(*shape, threads or None).items()
            if only in name or name in (PLAIN, COPY, ARGMAX)
        }
        measured = measure({name: call for name, (call, _) in some.items()}, seconds / len(shapes), rounds)
        scale = 1e9 / (shape[0] * shape[1])
        for name, (_, goal) in some.items():
            times, plain = measured[name], measured[ARGMAX if goal.endswith("argmax") else PLAIN]
            goals = goals or bool(goal)
            cell = f"{times.best / plain.best:.2f} ({times.median / plain.median:.2f})"
            if name in (PLAIN, COPY, ARGMAX):
                cell = f"{scale * times.best:.3f} ns ({scale * times.median:.3f} ns)"
            lines.setdefault(name, [name, goal, *[""] * len(shapes)])[column] = cell  # some are of some shapes only
    header = ["path", "goal", *(shape_text(*shape) for shape in shapes)]
    kept = [k for k in range(len(header)) if goals or k != 1]
    text = [[line[k] for k in kept] for line in (header, ["---"] * len(header), *lines.values())]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="0: automatic (default %(default)s)")
    parser.add_argument("--only", default="", help="paths whose name contains this")
    parser.add_argument("--shape", default="", help="shapes that begin with this, such as 4096x1000")
    parser.add_argument("--smoke", action="store_true", help="few rows and one round, to check that everything runs")
    arguments = parser.parse_args()
    seconds, rounds = (0.0, 1) if arguments.smoke else (arguments.seconds, ROUNDS)
    count = arguments.threads
    print(
        f"{describe()}\n{f'{count} threads' if count > 1 else '1 thread' if count else 'automatic number of threads'}"
    )
    for make, all_shapes, share in ((calls, SHAPES, 0.8), (new_array_calls, NEW_ARRAY_SHAPES, 0.2)):
        shapes = [s for s in all_shapes if f"{s[0]}x{s[1]}x{s[2]}".startswith(arguments.shape)]
        if arguments.smoke:
            shapes = [(SMOKE_ROWS, classes, dtype) for _, classes, dtype in shapes]
        if shapes:
            print(f"\n{table(make, shapes, count, share * seconds, rounds, arguments.only)}")


if __name__ == "__main__":
    main()
