"""Hashes of what every public function of the installed fastce returns: shows that a change of the code changes no bit.

    python bench/same_bits.py --write before.json       with the old build
    python bench/same_bits.py --check before.json       with the new one; exit status 1 if anything differs

Every instruction set that is available runs in a process of its own. A part of the cases runs with several numbers of
threads, which must not matter. Uses the public interface alone, so that one file serves both builds. Hashes depend on
the processor's instruction sets and on the compiler: compare on one machine."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fastce

FLOATS = (np.float32, np.float64)
REDUCTIONS = ("mean", "sum", "none")
TIME_LIMIT = 600  # seconds for one instruction set; some ten are taken
SHOWN = 6  # names of cases in each group of a report
POOL = 99_991  # numbers that are drawn; larger arrays repeat them

Outputs = dict[str, Any]


class Case(NamedTuple):
    name: str  # group/what/...
    run: Callable[..., Outputs]  # called with `rng` and with num_threads=
    threads: bool = False  # also with other numbers of threads


# ---------------------------------------------------------------------------------------------------------------------
# Inputs. Sums of uniform numbers are exact on every platform, which logarithms and exponentials are not.
# ---------------------------------------------------------------------------------------------------------------------


def noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float64, size: float = 4.0) -> np.ndarray:
    """Nearly normal, standard deviation size/sqrt(3)."""
    count = int(np.prod(shape))
    drawn = min(count, POOL)
    x = rng.random(drawn) + rng.random(drawn) + rng.random(drawn) + rng.random(drawn) - 2
    return aligned(np.resize((x * size).astype(dtype), shape) if count else np.empty(shape, dtype))


def aligned(x: np.ndarray, offset: int = 0) -> np.ndarray:
    """A C-ordered copy that starts `offset` bytes after a multiple of 64."""
    buffer = np.empty(x.nbytes + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    copy = buffer[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def labels_for(rng: np.random.Generator, shape: tuple[int, ...], classes: int, dtype: Any = np.int64) -> np.ndarray:
    return rng.integers(0, classes, shape).astype(dtype)


def rows_of(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def targets_for(rng: np.random.Generator, kind: str, shape: tuple[int, ...], axis: int, dtype: Any) -> np.ndarray:
    if kind == "labels":
        return labels_for(rng, rows_of(shape, axis), shape[axis])
    c = noise(rng, shape, np.float64, 0.5) ** 2 + 2.0**-10
    return aligned((c / c.sum(axis=axis, keepdims=True)).astype(dtype))


def weights(rng: np.random.Generator, shape: tuple[int, ...] | int, dtype: Any = np.float64) -> np.ndarray:
    return (rng.random(shape) + 0.25).astype(dtype)


def odd_order(x: np.ndarray) -> np.ndarray:
    """The same values; the last axis comes first in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, 0)), 0, -1)


def unaligned(x: np.ndarray) -> np.ndarray:
    buffer = np.zeros(x.nbytes + 1, np.uint8)
    copy = np.frombuffer(buffer, x.dtype, x.size, 1).reshape(x.shape)
    copy[...] = x
    return copy


def strided(x: np.ndarray) -> np.ndarray:
    """Every second number of the last axis and every third of the first."""
    buffer = np.zeros((3 * x.shape[0], *x.shape[1:-1], 2 * x.shape[-1]), x.dtype)
    view = buffer[1::3, ..., ::2]
    view[...] = x
    return view


def padded(x: np.ndarray) -> np.ndarray:
    buffer = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
    buffer[..., 1:-2] = x
    return buffer[..., 1:-2]


def reversed_(x: np.ndarray) -> np.ndarray:
    backwards = (slice(None, None, -1),) * x.ndim
    return np.ascontiguousarray(x[backwards])[backwards]


def broadcast_rows(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x[:1].copy(), x.shape)


def broadcast_classes(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x[..., :1].copy(), x.shape)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "odd order": odd_order,
    "reversed": reversed_,
    "reversed rows": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "strided": strided,
    "padded": padded,
    "swapped": lambda x: x.astype(x.dtype.newbyteorder("S")),
    "swapped Fortran": lambda x: np.asfortranarray(x.astype(x.dtype.newbyteorder("S"))),
    "unaligned": unaligned,
    "4 bytes off": lambda x: aligned(x, x.itemsize),
    "broadcast rows": broadcast_rows,
    "broadcast classes": broadcast_classes,
}


# ---------------------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------------------


def cross_entropies(
    x: Any,
    t: Any,
    num_threads: int | None,
    reductions: tuple[str, ...] = REDUCTIONS,
    upstream: Any = 1.0,
    **options: Any,
) -> Outputs:
    """Every way to compute loss and gradient. An upstream array is for "none"; the others take its first number."""
    outputs: Outputs = {}
    options["num_threads"] = num_threads
    normalizer = options.pop("normalizer", None)
    for reduction in reductions:
        options["reduction"] = reduction
        options["normalizer"] = normalizer if reduction == "mean" else None
        up = upstream if reduction == "none" else float(np.asarray(upstream).flat[0]) if np.size(upstream) else 1.0
        given = {} if isinstance(upstream, float) and upstream == 1.0 else {"upstream": up}
        outputs[f"{reduction} loss"], outputs[f"{reduction} grad"] = fastce.cross_entropy_with_grad(
            x, t, **options, **given
        )
        outputs[f"{reduction} loss alone"], stats = fastce.cross_entropy(x, t, **options, return_stats=True)
        outputs[f"{reduction} loss alone, no stats"] = fastce.cross_entropy(x, t, **options)
        outputs[f"{reduction} grad alone"] = fastce.cross_entropy_grad(x, t, **options, **given)
        outputs[f"{reduction} grad from stats"] = fastce.cross_entropy_grad(x, t, **options, **given, stats=stats)
        outputs["row_max"], outputs["tail"] = stats
    return outputs


def softmaxes(x: Any, u: Any, num_threads: int | None, axis: int = -1) -> Outputs:
    options: dict[str, Any] = {"axis": axis, "num_threads": num_threads}
    p, log_p = fastce.softmax(x, **options), fastce.log_softmax(x, **options)
    outputs = {"softmax": p, "log_softmax": log_p, "logsumexp": fastce.logsumexp(x, **options)}
    if u is not None:
        outputs["softmax_grad"] = fastce.softmax_grad(u, p, **options)
        outputs["log_softmax_grad"] = fastce.log_softmax_grad(u, log_p, **options)
    outputs["predict"] = fastce.predict(x, axis=axis)
    return outputs


def binaries(x: Any, c: Any, num_threads: int | None, upstream: Any = 1.0, **options: Any) -> Outputs:
    outputs: Outputs = {}
    options["num_threads"] = num_threads
    normalizer = options.pop("normalizer", None)
    for reduction in REDUCTIONS:
        options["reduction"] = reduction
        options["normalizer"] = normalizer if reduction == "mean" else None
        up = upstream if reduction == "none" else float(np.asarray(upstream).flat[0])
        outputs[f"{reduction} loss"], outputs[f"{reduction} grad"] = fastce.binary_cross_entropy_with_grad(
            x, c, upstream=up, **options
        )
        outputs[f"{reduction} loss alone"] = fastce.binary_cross_entropy(x, c, **options)
    return outputs


# ---------------------------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------------------------

# On both sides of every size at which the kernels take another way.
CLASSES = (1, 2, 3, 7, 10, 15, 16, 17, 31, 40, 41, 100, 128, 129, 1000, 2048, 2049, 4096, 4097, 5000, 10000)
# Few classes; rows that take turns; long rows; other axes than the last, in one block of a tile and in several.
SHAPES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((300, 7), -1),
    ((35, 300), -1),
    ((4, 5000), -1),
    ((3, 10, 5, 7), 1),
    ((300, 41), 0),
)
MANY_ROWS: tuple[tuple[tuple[int, ...], int], ...] = (
    ((30_001, 3), -1),
    ((9_000, 10), -1),
    ((1_500, 100), -1),
    ((130, 1000), -1),
    ((4, 19, 50, 31), 1),
    ((200, 999), 0),
)


def size_cases() -> Iterator[Case]:
    for dtype in FLOATS:
        for classes in CLASSES:
            rows = max(3, min(230, 12_000 // classes))
            for kind in ("labels", "probabilities"):

                def run(rng: Any, num_threads: Any, dtype=dtype, shape=(rows, classes), kind=kind) -> Outputs:
                    return cross_entropies(
                        noise(rng, shape, dtype), targets_for(rng, kind, shape, 1, dtype), num_threads
                    )

                yield Case(f"size/{dtype.__name__}/{kind}/{rows}x{classes}", run, classes in (3, 100, 1000, 5000))
        for rows in (1, 2, 15, 16, 17, 48, 49, 112, 113):
            for classes in (9, 60):

                def run(rng: Any, num_threads: Any, dtype=dtype, shape=(rows, classes)) -> Outputs:
                    return cross_entropies(
                        noise(rng, shape, dtype), targets_for(rng, "labels", shape, 1, dtype), num_threads
                    )

                yield Case(f"rows/{dtype.__name__}/{rows}x{classes}", run)
        for shape, axis in MANY_ROWS:
            for kind in ("labels", "probabilities"):

                def run(rng: Any, num_threads: Any, dtype=dtype, shape=shape, axis=axis, kind=kind) -> Outputs:
                    return cross_entropies(
                        noise(rng, shape, dtype), targets_for(rng, kind, shape, axis, dtype), num_threads, axis=axis
                    )

                yield Case(f"units/{dtype.__name__}/{kind}/{shape}", run, True)
        for shape in ((0, 5), (0, 300), (3, 0, 5)):

            def run(rng: Any, num_threads: Any, dtype=dtype, shape=shape) -> Outputs:
                return cross_entropies(
                    noise(rng, shape, dtype), targets_for(rng, "labels", shape, -1, dtype), num_threads
                )

            yield Case(f"rows/{dtype.__name__}/none {shape}", run)

        def run(rng: Any, num_threads: Any, dtype=dtype) -> Outputs:
            return cross_entropies(noise(rng, (11,), dtype), np.int64(4), num_threads)

        yield Case(f"rows/{dtype.__name__}/one dimension", run)


def options_for(name: str, rng: Any, shape: tuple[int, ...], axis: int, t: np.ndarray, dtype: Any) -> dict[str, Any]:
    classes, rows = shape[axis], rows_of(shape, axis)
    if name == "weight":
        return {"weight": weights(rng, classes)}
    if name == "weight of the dtype":
        return {"weight": weights(rng, classes, dtype)}
    if name == "zero weights":
        return {"weight": weights(rng, classes) * (rng.random(classes) > 0.4)}
    if name == "no weight at all":
        return {"weight": np.zeros(classes)}
    if name == "sample_weight":
        return {"sample_weight": weights(rng, rows) * (rng.random(rows) > 0.2)}
    if name == "ignore_index hit":
        t[rng.random(t.shape) < 0.3] = -100
        return {}
    if name == "ignore_index a class":
        return {"ignore_index": int(t.flat[0])}
    if name == "ignore_index not hit":
        return {"ignore_index": -7}
    if name == "ignore_index None":
        return {"ignore_index": None}
    if name == "all ignored":
        t[...] = -100
        return {}
    if name == "label_smoothing":
        return {"label_smoothing": 0.1}
    if name == "label_smoothing 1":
        return {"label_smoothing": 1.0}
    if name == "z_loss":
        return {"z_loss": 1e-3}
    if name == "normalizer":
        return {"normalizer": 12.5}
    if name == "upstream":
        return {"upstream": -1.75}
    assert name == "upstream by row"
    return {"upstream": noise(rng, rows)}


ONE_OPTION = (
    "weight",
    "weight of the dtype",
    "zero weights",
    "sample_weight",
    "label_smoothing",
    "label_smoothing 1",
    "z_loss",
    "normalizer",
    "upstream",
    "upstream by row",
)
LABEL_OPTION = ("ignore_index hit", "ignore_index a class", "ignore_index not hit", "ignore_index None", "all ignored")
COMBINED = (
    "weight+label_smoothing",
    "weight+label_smoothing+z_loss",
    "zero weights+sample_weight",
    "zero weights+label_smoothing",
    "no weight at all+z_loss",
    "sample_weight+label_smoothing+upstream by row",
    "z_loss+label_smoothing+normalizer",
    "weight+sample_weight+label_smoothing+z_loss+upstream by row+normalizer",
)
LABELS_COMBINED = (
    "ignore_index hit+weight",
    "ignore_index hit+label_smoothing",
    "ignore_index hit+sample_weight+upstream by row",
    "ignore_index a class+weight+z_loss",
    "ignore_index hit+weight+sample_weight+label_smoothing+z_loss+upstream by row",
)


def option_cases() -> Iterator[Case]:
    for dtype in FLOATS:
        for shape, axis in SHAPES:
            for kind in ("labels", "probabilities"):
                names = ONE_OPTION + COMBINED + (LABEL_OPTION + LABELS_COMBINED if kind == "labels" else ())
                if shape == SHAPES[-1][0]:  # the same ways as the other axis: those options that meet most code
                    names = tuple(name for name in names if "+" in name)
                for name in names:

                    def run(
                        rng: Any, num_threads: Any, dtype=dtype, shape=shape, axis=axis, kind=kind, name=name
                    ) -> Outputs:
                        x, t = noise(rng, shape, dtype), targets_for(rng, kind, shape, axis, dtype)
                        options: dict[str, Any] = {}
                        for part in name.split("+"):
                            options |= options_for(part, rng, shape, axis, t, dtype)
                        return cross_entropies(x, t, num_threads, axis=axis, **options)

                    yield Case(f"options/{dtype.__name__}/{kind}/{shape}/{name}", run, name == COMBINED[-1])
        for name in ("weight+sample_weight+label_smoothing+z_loss", "ignore_index hit+weight+upstream by row"):
            for shape, axis in MANY_ROWS:

                def run(rng: Any, num_threads: Any, dtype=dtype, shape=shape, axis=axis, name=name) -> Outputs:
                    x, t = noise(rng, shape, dtype), targets_for(rng, "labels", shape, axis, dtype)
                    options: dict[str, Any] = {}
                    for part in name.split("+"):
                        options |= options_for(part, rng, shape, axis, t, dtype)
                    return cross_entropies(x, t, num_threads, ("sum", "mean"), axis=axis, **options)

                yield Case(f"units/{dtype.__name__}/labels/{shape}/{name}", run, True)


def layer_cases() -> Iterator[Case]:
    for dtype in FLOATS:
        for reduction in REDUCTIONS:

            def run(rng: Any, num_threads: Any, dtype=dtype, reduction=reduction) -> Outputs:
                layer = fastce.CrossEntropyLoss(label_smoothing=0.05, num_threads=num_threads)
                x, t = noise(rng, (60, 70), dtype), labels_for(rng, (60,), 70)
                loss = layer(x, t, reduction=reduction, z_loss=1e-4, weight=weights(rng, 70))
                out = np.empty_like(x)
                again = layer.backward(0.5, out=out).copy()
                return {
                    "loss": loss,
                    "grad": layer.backward(noise(rng, (60,)) if reduction == "none" else 2),
                    "out": again,
                }

            yield Case(f"layer/{dtype.__name__}/{reduction}", run)


LABEL_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", ">i2", "<i4", ">i8", ">u4")
TARGET_DTYPES = LABEL_DTYPES + ("bool", "float16", "float32", "float64", "longdouble", ">f4", ">f8", "<f8")
LOGIT_DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint64", ">i4", ">f4", ">f8")


def dtype_cases() -> Iterator[Case]:
    for shape, axis in SHAPES[:4]:
        for dtype in LOGIT_DTYPES:

            def run(rng: Any, num_threads: Any, dtype=dtype, shape=shape, axis=axis) -> Outputs:
                x = np.abs(noise(rng, shape, size=9)).astype(dtype)
                t = targets_for(rng, "labels", shape, axis, np.float64)
                return cross_entropies(x, t, num_threads, axis=axis) | softmaxes(x, None, num_threads, axis)

            yield Case(f"logits dtype/{dtype}/{shape}", run)
    for logits in FLOATS:
        for shape, axis in SHAPES[:4]:
            for dtype in LABEL_DTYPES:

                def run(rng: Any, num_threads: Any, logits=logits, dtype=dtype, shape=shape, axis=axis) -> Outputs:
                    t = labels_for(rng, rows_of(shape, axis), min(shape[axis], 127), dtype)
                    options = {"ignore_index": 3, "label_smoothing": 0.1}
                    return cross_entropies(noise(rng, shape, logits), t, num_threads, ("sum",), axis=axis, **options)

                if logits == np.float32 or shape == SHAPES[0][0]:
                    yield Case(f"labels dtype/{logits.__name__}/{dtype}/{shape}", run)
            for dtype in TARGET_DTYPES:

                def run(rng: Any, num_threads: Any, logits=logits, dtype=dtype, shape=shape, axis=axis) -> Outputs:
                    c = rng.random(shape)
                    if np.dtype(dtype).kind != "f":
                        c = np.floor(c * 3)
                    return cross_entropies(
                        noise(rng, shape, logits), c.astype(dtype), num_threads, ("mean", "sum"), axis=axis
                    )

                yield Case(f"targets dtype/{logits.__name__}/{dtype}/{shape}", run)


def layout_cases() -> Iterator[Case]:
    shapes = (((130, 7), -1), ((40, 300), -1), ((3, 4500), -1), ((3, 12, 5, 7), 1), ((60, 37), 0), ((5, 4, 33), -2))
    for dtype in FLOATS:
        for shape, axis in shapes:
            for name, layout in LAYOUTS.items():
                for kind in ("labels", "probabilities"):

                    def run(
                        rng: Any, num_threads: Any, dtype=dtype, shape=shape, axis=axis, layout=layout, kind=kind
                    ) -> Outputs:
                        x, t = noise(rng, shape, dtype), targets_for(rng, kind, shape, axis, dtype)
                        if kind == "probabilities":  # their layout is another than that of the logits
                            reductions: tuple[str, ...] = ("none", "sum")
                            outputs = cross_entropies(x, layout(t), num_threads, reductions, axis=axis)
                            return outputs | {
                                f"both {name}": value
                                for name, value in cross_entropies(
                                    layout(x), layout(t), num_threads, ("sum",), axis=axis
                                ).items()
                            }
                        rows = rows_of(shape, axis)
                        by_row = weights(rng, rows)
                        if len(rows) > 1:
                            by_row = odd_order(by_row)
                        return cross_entropies(
                            layout(x), t, num_threads, axis=axis, sample_weight=by_row, upstream=by_row[..., ::-1]
                        ) | softmaxes(layout(x), layout(noise(rng, shape, dtype)), num_threads, axis)

                    yield Case(f"layout/{dtype.__name__}/{kind}/{shape}/{name}", run)


def out_cases() -> Iterator[Case]:
    shapes = (((130, 7), -1), ((40, 300), -1), ((3, 4500), -1), ((3, 12, 5, 7), 1), ((60, 37), 0))
    ways = (
        "in place",
        "one number behind",
        "one number before",
        "one row behind",
        "Fortran",
        "strided",
        "reversed in place",
        "the targets",
        "the upstream",
        "the sample weights",
    )
    for dtype in FLOATS:
        for shape, axis in shapes:
            for way in ways:

                def run(rng: Any, num_threads: Any, dtype=dtype, shape=shape, axis=axis, way=way) -> Outputs:
                    outputs: Outputs = {}
                    size = int(np.prod(shape))
                    for call in (
                        "labels",
                        "probabilities",
                        "given stats",
                        "softmax",
                        "log_softmax",
                        "sigmoid",
                        "pairs",
                    ):
                        kind = "labels" if call in ("labels", "given stats") else "probabilities"
                        buffer = noise(rng, (size + 2 * shape[-1],), dtype)
                        c = targets_for(rng, kind, shape, axis, dtype)
                        x = buffer[shape[-1] : shape[-1] + size].reshape(shape)
                        rows = rows_of(shape, axis)
                        sample, up = weights(rng, rows, dtype), noise(rng, rows, dtype)
                        start = {
                            "in place": 0,
                            "one number behind": 1,
                            "one number before": -1,
                            "one row behind": shape[-1],
                        }
                        out = np.empty(shape, dtype)
                        if way in start:
                            first = shape[-1] + start[way]
                            out = buffer[first : first + size].reshape(shape)
                        elif way == "Fortran":
                            out = np.empty(shape, dtype, order="F")
                        elif way == "strided":
                            out = strided(out)
                        elif way == "reversed in place":
                            out = x[::-1]
                        elif way == "the targets":
                            if kind == "labels":
                                continue
                            out = c
                        elif way == "the upstream":
                            out, up = up_of(out, up, axis)
                        else:
                            out, sample = up_of(out, sample, axis)
                        options: dict[str, Any] = {"axis": axis, "num_threads": num_threads}
                        by_row = {"sample_weight": sample, "reduction": "none"}
                        if call in ("labels", "probabilities"):
                            loss, grad = fastce.cross_entropy_with_grad(x, c, **by_row, upstream=up, out=out, **options)
                            outputs[f"{call} loss"] = loss
                        elif call == "given stats":
                            _, stats = fastce.cross_entropy(x, c, return_stats=True, **options)
                            grad = fastce.cross_entropy_grad(
                                x, c, **by_row, upstream=up, out=out, stats=stats, **options
                            )
                        elif call == "softmax":
                            grad = fastce.softmax(x, out=out, **options)
                        elif call == "log_softmax":
                            grad = fastce.log_softmax(x, out=out, **options)
                        else:
                            activation = "sigmoid" if call == "sigmoid" else "softmax"
                            loss, grad = fastce.binary_cross_entropy_with_grad(
                                x, c, activation=activation, **by_row, upstream=2 if call == "sigmoid" else up, out=out,
                                **options,
                            )  # fmt: skip
                            outputs[f"{call} loss"] = loss
                        assert grad is out
                        outputs[f"{call} grad"] = grad.copy()
                    if way in ("in place", "the upstream"):
                        for function in (fastce.softmax_grad, fastce.log_softmax_grad):
                            y, u = noise(rng, shape, dtype, 0.5), noise(rng, shape, dtype)
                            out = y if way == "in place" else u
                            outputs[function.__name__] = function(u, y, axis=axis, out=out, num_threads=num_threads)
                    return outputs

                yield Case(f"out/{dtype.__name__}/{shape}/{way}", run)


def up_of(out: np.ndarray, by_row: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """One number for each row, in the memory of `out`."""
    view = np.moveaxis(out, axis, -1)[..., 0]
    view[...] = by_row
    return out, view


def special_rows(rng: Any, classes: int, dtype: Any) -> np.ndarray:
    info = np.finfo(dtype)
    under = float(np.floor(np.array(88 if dtype == np.float32 else 709)))  # exp(-under) is hardly normal
    x = noise(rng, (32, classes), dtype)
    last = classes - 1
    x[1] += dtype(1e6)
    x[2] -= dtype(1e6)
    x[3, rng.random(classes) < 0.5] = -np.inf
    x[4, 1:] = -np.inf
    x[5, :last] = -np.inf
    x[6] = -np.inf
    x[7, last // 2] = np.nan
    x[8, 0] = np.inf
    x[9, last] = np.inf
    x[9, 0] = np.nan
    x[10] = 0
    x[11] = -0.0
    x[12, last] = 1e4
    x[13, 0] = 30
    x[14, last // 2] = under
    x[15] -= dtype(under) * (rng.random(classes) < 0.7).astype(dtype)
    x[16] = x[16] * dtype(25)
    x[17] = x[17] * dtype(250)
    x[18] = (x[18] * info.smallest_subnormal).astype(dtype)
    x[19] = info.tiny
    x[20, last] = info.max
    x[21] = -info.max
    x[22, 0], x[22, last] = info.max, -info.max
    x[23, [0, last]] = 40  # two maxima
    x[24] = np.floor(x[24])
    x[25] = np.arange(classes, dtype=dtype)
    x[26] = -np.arange(classes, dtype=dtype)
    x[27] = np.where(np.arange(classes) % 2, -under - 10, 0)
    x[28, : last // 2] = -np.inf
    x[29, : last // 2] = 1e30
    x[30, : last // 2] = -1e30
    x[31] = dtype(3e37)
    return x


def special_cases() -> Iterator[Case]:
    plain: tuple[dict[str, Any], ...] = (
        {},
        {"label_smoothing": 0.1},
        {"z_loss": 1e-3},
        {"label_smoothing": 0.1, "z_loss": 1e-3, "weight": True},
        {"weight": True},
    )
    for dtype in FLOATS:
        for classes in (2, 7, 60, 300, 5000):
            for across in (False, True):
                for options in plain:
                    name = "+".join(options) or "plain"

                    def run(
                        rng: Any, num_threads: Any, dtype=dtype, classes=classes, across=across, options=options
                    ) -> Outputs:
                        x = special_rows(rng, classes, dtype)
                        rows = np.arange(32)
                        labels = {
                            "first": np.zeros(32, int),
                            "last": np.full(32, classes - 1),
                            "largest": np.argmax(x, axis=1),
                            "any": labels_for(rng, (32,), classes),
                            "odd ignored": np.where(rows % 2, -100, labels_for(rng, (32,), classes)),
                        }
                        options = dict(options)
                        if "weight" in options:
                            options["weight"] = weights(rng, classes) * (rng.random(classes) > 0.3)
                        c = targets_for(rng, "probabilities", x.shape, 1, dtype) * (rng.random(x.shape) > 0.5)
                        outputs: Outputs = {}
                        axis = 1
                        if across:
                            x, c, axis = x.T.copy(), c.T.copy(), 0
                        for name, t in (*labels.items(), ("probabilities", c.astype(dtype))):
                            found = cross_entropies(x, t, num_threads, ("none", "sum"), axis=axis, **options)
                            outputs |= {f"{name}: {key}": value for key, value in found.items()}
                        if not options:
                            u = noise(rng, x.shape, dtype)
                            outputs |= softmaxes(x, u, num_threads, axis)
                            for activation in ("sigmoid", "softmax"):
                                found = binaries(x, c, num_threads, axis=axis, activation=activation)
                                outputs |= {f"{activation}: {key}": value for key, value in found.items()}
                        return outputs

                    yield Case(f"special/{dtype.__name__}/{classes}{' across' if across else ''}/{name}", run)


def softmax_cases() -> Iterator[Case]:
    for dtype in FLOATS:
        for classes in CLASSES:
            rows = max(3, min(230, 12_000 // classes))

            def run(rng: Any, num_threads: Any, dtype=dtype, shape=(rows, classes)) -> Outputs:
                return softmaxes(noise(rng, shape, dtype), noise(rng, shape, dtype), num_threads)

            yield Case(f"softmax/{dtype.__name__}/{rows}x{classes}", run, classes in (3, 1000))
        for shape, axis in MANY_ROWS:

            def run(rng: Any, num_threads: Any, dtype=dtype, shape=shape, axis=axis) -> Outputs:
                return softmaxes(noise(rng, shape, dtype), noise(rng, shape, dtype), num_threads, axis)

            yield Case(f"softmax/{dtype.__name__}/{shape}", run, True)
        for other in ("float16", "float32", "float64", "int32", ">f8", "bool"):

            def run(rng: Any, num_threads: Any, dtype=dtype, other=other) -> Outputs:
                return softmaxes(noise(rng, (50, 30), dtype), noise(rng, (50, 30)).astype(other), num_threads)

            yield Case(f"softmax/{dtype.__name__}/upstream {other}", run)


def binary_cases() -> Iterator[Case]:
    one: tuple[str, ...] = ("", "pos_weight", "weight", "sample_weight", "normalizer", "upstream", "upstream array")
    all_of = ("pos_weight+weight", "weight+sample_weight+upstream array", "pos_weight+weight+sample_weight+normalizer")
    shapes = (*SHAPES, ((300, 1), -1), ((2000, 45), -1), ((11,), -1))
    for dtype in FLOATS:
        for activation in ("sigmoid", "softmax"):
            for shape, axis in shapes:
                for name in one + all_of:
                    if activation == "softmax" and "pos_weight" in name:
                        continue

                    def run(
                        rng: Any,
                        num_threads: Any,
                        dtype=dtype,
                        activation=activation,
                        shape=shape,
                        axis=axis,
                        name=name,
                    ) -> Outputs:
                        x, c = noise(rng, shape, dtype), rng.random(shape).astype(dtype)
                        rows = rows_of(shape, axis)
                        values: dict[str, Any] = {
                            "pos_weight": weights(rng, shape[axis]),
                            "weight": weights(rng, shape[axis]) * (rng.random(shape[axis]) > 0.3),
                            "sample_weight": weights(rng, rows),
                            "normalizer": 3.5,
                            "upstream": 0.75,
                            "upstream array": noise(rng, shape if activation == "sigmoid" else rows),
                        }
                        options = {part.removesuffix(" array"): values[part] for part in name.split("+") if part}
                        if name == "upstream array" and activation == "softmax" and len(shape) == 1:
                            del options["upstream"]
                        return binaries(x, c, num_threads, axis=axis, activation=activation, **options)

                    yield Case(f"binary/{dtype.__name__}/{activation}/{shape}/{name or 'plain'}", run, shape[0] == 2000)
            for name, layout in LAYOUTS.items():
                for shape, axis in (((40, 30), -1), ((40, 300), -1), ((3, 12, 5, 7), 1)):

                    def run(
                        rng: Any,
                        num_threads: Any,
                        dtype=dtype,
                        activation=activation,
                        shape=shape,
                        axis=axis,
                        layout=layout,
                    ) -> Outputs:
                        x, c = noise(rng, shape, dtype), rng.random(shape).astype(dtype)
                        return binaries(layout(x), c, num_threads, axis=axis, activation=activation) | {
                            f"targets: {key}": value
                            for key, value in binaries(
                                x, layout(c), num_threads, axis=axis, activation=activation
                            ).items()
                        }

                    yield Case(f"binary layout/{dtype.__name__}/{activation}/{shape}/{name}", run)
            for other in TARGET_DTYPES:

                def run(rng: Any, num_threads: Any, dtype=dtype, activation=activation, other=other) -> Outputs:
                    c = rng.random((50, 30))
                    if np.dtype(other).kind != "f":
                        c = np.floor(c * 2)
                    return binaries(noise(rng, (50, 30), dtype), c.astype(other), num_threads, activation=activation)

                yield Case(f"binary dtype/{dtype.__name__}/{activation}/{other}", run)


def streamed_cases() -> Iterator[Case]:
    """Gradients of 24 MiB and a little more, of long rows, which are written past the caches."""
    for dtype in FLOATS:
        for classes, offset in ((4097, 0), (5008, 0), (10000, 4)):
            rows = (24 << 20) // (classes * dtype().itemsize) + 2

            def run(rng: Any, num_threads: Any, dtype=dtype, shape=(rows, classes), offset=offset) -> Outputs:
                x = noise(rng, shape, dtype)
                if offset:
                    x = aligned(x, dtype().itemsize)
                t = labels_for(rng, (shape[0],), shape[1])
                out = aligned(np.zeros_like(x), 3 * dtype().itemsize if offset else 0)
                options: dict[str, Any] = {"num_threads": num_threads, "out": out}
                outputs: Outputs = {}
                loss, grad = fastce.cross_entropy_with_grad(x, t, reduction="sum", **options)
                outputs["labels loss"], outputs["labels grad"] = loss, digest(grad)
                loss, grad = fastce.cross_entropy_with_grad(
                    x, t, reduction="none", label_smoothing=0.1, z_loss=1e-4, weight=weights(rng, shape[1]), **options
                )
                outputs["options loss"], outputs["options grad"] = loss, digest(grad)
                outputs["log_softmax"] = digest(fastce.log_softmax(x, **options))
                c = np.broadcast_to(targets_for(rng, "probabilities", (1, shape[1]), 1, dtype), shape)
                loss, grad = fastce.cross_entropy_with_grad(x, c, reduction="sum", **options)
                outputs["probabilities loss"], outputs["probabilities grad"] = loss, digest(grad)
                return outputs

            yield Case(f"streamed/{dtype.__name__}/{rows}x{classes}{' off' if offset else ''}", run, classes == 4097)


def entropy_cases() -> Iterator[Case]:
    """Entropies and evaluations, with masked classes and a row that has no result."""
    for dtype in FLOATS:
        for shape, axis in [*SHAPES, ((3, 9000), -1), ((9000, 3), 0)]:
            for temperature in (1.0, 0.7):

                def run(rng: Any, num_threads: Any, d=dtype, s=shape, axis=axis, t=temperature) -> Outputs:
                    x = np.round(noise(rng, s, d), 1)
                    x.flat[::7], x.flat[5::1001] = -np.inf, np.nan
                    labels = labels_for(rng, np.delete(s, axis), s[axis])
                    options: dict[str, Any] = {"axis": axis, "num_threads": num_threads, "temperature": t}
                    entropy, grad = fastce.entropy_with_grad(x, reduction="none", **options)
                    evaluation, rows = fastce.evaluate(x, labels, return_rows=True, **options)
                    alone = fastce.entropy(x, reduction="none", **options)
                    outputs = {"entropy": entropy, "grad": grad, "entropy alone": alone, "bins": evaluation.bins}
                    return outputs | evaluation.sums | {f"{name} of rows": a for name, a in rows._asdict().items()}

                yield Case(f"entropy/{dtype.__name__}/{shape} {axis} {temperature}", run, threads=True)


def other_cases() -> Iterator[Case]:
    for dtype in ("float32", "float64", "int8", "bool", "complex64", "float16"):
        for axis in (-1, 0, 1):

            def run(rng: Any, num_threads: Any, dtype=dtype, axis=axis) -> Outputs:
                labels = labels_for(rng, (6, 5), 9, np.int16)
                return {"rows": fastce.one_hot(labels, 9, dtype=dtype, axis=axis)}

            yield Case(f"one_hot/{dtype}/{axis}", run)
    for shape, axis in SHAPES:

        def run(rng: Any, num_threads: Any, shape=shape, axis=axis) -> Outputs:
            x = np.floor(noise(rng, shape))
            x.flat[::101] = np.nan
            return {str(d): fastce.predict(x.astype(d), axis=axis) for d in FLOATS} | {
                "int": fastce.predict(np.nan_to_num(x).astype(int), axis=axis)
            }

        yield Case(f"predict/{shape}", run)


def cases() -> Iterator[Case]:
    yield from size_cases()
    yield from option_cases()
    yield from layer_cases()
    yield from dtype_cases()
    yield from layout_cases()
    yield from out_cases()
    yield from special_cases()
    yield from softmax_cases()
    yield from binary_cases()
    yield from streamed_cases()
    yield from entropy_cases()
    yield from other_cases()


# ---------------------------------------------------------------------------------------------------------------------
# Hashes
# ---------------------------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """Of dtype, shape and values. Every NaN counts as the same one; 0 and -0 differ."""
    if isinstance(value, str):
        return value
    array = np.ascontiguousarray(value).reshape(np.shape(value))
    if array.dtype.kind in "fc" and np.isnan(array.sum()):
        array = np.where(np.isnan(array), array.dtype.type(np.nan), array).astype(array.dtype)
    of = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    of.update(array.reshape(-1).view(np.uint8))
    return of.hexdigest()[:32]


def hashes_of(case: Case, num_threads: int | None) -> dict[str, str]:
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    with np.errstate(all="ignore"):
        try:
            return {name: digest(value) for name, value in case.run(rng=rng, num_threads=num_threads).items()}
        except Exception as error:  # what is raised is a result too
            return {"raised": f"{type(error).__name__}: {error}"}


def hashes_here() -> dict[str, dict[str, str]]:
    """{case: {output: hash}} under the instruction set of this process."""
    found = {}
    for case in cases():
        assert case.name not in found, case.name
        hashes = hashes_of(case, 1)
        for num_threads in (2, None) if case.threads else ():
            for name, value in hashes_of(case, num_threads).items():
                if hashes.get(name) != value and "depends on" not in hashes.get(name, ""):
                    hashes[name] = f"depends on num_threads: {hashes.get(name)}, {value} with {num_threads}"
        found[case.name] = hashes
    return found


def hashes_with(isa: str) -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-P", __file__, "--here"],
        env=os.environ | {"FASTCE_ISA": isa},
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIME_LIMIT,
    )
    if done.returncode:
        raise SystemExit(f"{isa}: the process ended with status {done.returncode}")
    report = json.loads(done.stdout)
    assert report["isa"] == isa
    return report["hashes"]


def group_of(case: str) -> str:
    return "/".join(case.split("/")[:2])


def compare(isa: str, before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> int:
    """Prints what differs, and returns in how many cases."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    bad = set()
    for case in before:
        if case not in now:
            groups["(cases that this file no longer has)", ""].append(case)
            bad.add(case)
            continue
        for output in before[case].keys() | now[case].keys():
            if before[case].get(output) != now[case].get(output):
                groups[group_of(case), output].append(case)
                bad.add(case)
    new = now.keys() - before.keys()
    outputs = sum(len(now[case]) for case in before.keys() & now.keys())
    print(f"{isa}: {len(before.keys() & now.keys())} cases, {outputs} outputs compared; {len(bad)} cases differ")
    if new:
        print(f"  {len(new)} cases are new and were not compared")
    for (group, output), names in sorted(groups.items()):
        print(f"  {group} [{output}]: {len(names)}")
        for name in names[:SHOWN]:
            print(f"      {name}")
            for hashes in (before, now):
                if (text := hashes.get(name, {}).get(output, "")) and " " in text:
                    print(f"          {text}")
        if len(names) > SHOWN:
            print(f"      and {len(names) - SHOWN} more")
    return len(bad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE.json")
    what.add_argument("--check", type=Path, metavar="FILE.json")
    what.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--isa", help="this instruction set alone")
    options = parser.parse_args()
    config = fastce.show_config(mode="dicts")
    if options.here:
        json.dump({"isa": config["isa"], "hashes": hashes_here()}, sys.stdout)
        return 0
    print(f"fastce of {Path(fastce.__file__).parent}, {config['compiler']}")
    available = [options.isa] if options.isa else config["isa_available"]
    before = json.loads(options.check.read_text()) if options.check else {}
    for isa in sorted(before.keys() - set(config["isa_available"])):
        print(f"{isa}: not compared, it does not run here")
    now: dict[str, Any] = {}
    bad = 0
    for isa in available:
        if options.check and isa not in before:
            print(f"{isa}: not compared, {options.check} has no hashes for it")
            continue
        now[isa] = hashes_with(isa)
        dependent = [
            f"{case} [{output}]" for case in now[isa] for output, text in now[isa][case].items() if "depends on" in text
        ]
        for name in dependent:
            print(f"{isa}: depends on num_threads: {name}")
        raised = [(case, now[isa][case]["raised"]) for case in now[isa] if "raised" in now[isa][case]]
        for name, text in raised:
            print(f"{isa}: {name} raised {text}")
        bad += len(dependent)
        if options.check:
            bad += compare(isa, before[isa], now[isa])
        else:
            print(f"{isa}: {len(now[isa])} cases, {sum(map(len, now[isa].values()))} outputs")
    if options.write:
        options.write.write_text(json.dumps(now, indent=0) + "\n")
    elif not now:
        print("nothing was compared")
        return 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
