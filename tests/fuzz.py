"""A fuzzer of the whole public API: random calls, each compared with its exact values to the bounds of the contract, or
expected to be refused.

    python tests/fuzz.py --seconds 600                 # on each instruction set an equal part of the time
    python tests/fuzz.py --seconds 60 --only softmax   # kinds of calls, or functions, whose names contain that
    FASTCE_ISA=avx2 python tests/fuzz.py --case index:123

A case is a kind of call and a number. Both decide everything that is random in it, so a case that failed can be run
alone, as the last line shows. Every case runs under ``np.errstate(all="raise")``, with warnings as errors, in a process
of its instruction set; the case that ends such a process is known too.

Sizes are at the edges of vectors, groups, tiles, blocks and parts. Arrays lie in memory in any of the ways of
layouts.py."""

from __future__ import annotations

import argparse
import functools
import inspect
import itertools
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile
import ml_dtypes
import numpy as np
from functions import (
    CURVATURE,
    F32,
    F64,
    FAMILIES,
    FUNCTIONS,
    INDEX,
    MAPS,
    ONE_TERM,
    PRODUCTS,
    TWO_TERM,
    Family,
    Function,
    numbers,
    one_hot_rows,
    softmax_of,
)
from layouts import LAYOUTS, NOT_ONE_STRIDE
from oracle import LD, OPTION_ULPS, ExactProduct, Number, assert_rounded, assert_within, exact
from oracle_entropy import exact_entropy

import fastce
from fastce import reference

F16, BF16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
ISAS: list[str] = fastce.show_config(mode="dicts")["isa_available"]

# What sizes are compared with in _plan.pxd, _job.pxd and _blocks.pxd, and the lengths of vectors.
EDGES = sorted(
    {
        max(n + d, 1)
        for n in (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 224, 256, 512, 1024, 2048, 4096, 8192)
        for d in (-1, 0, 1)
    }
)
LONG = [n + d for n in (8192, 16384, 32768, 65536) for d in (-1, 0, 1)]


class Draw:
    """Random choices of one case, and what was chosen, for the message."""

    def __init__(self, kind: str, number: int) -> None:
        self.rng = np.random.default_rng([zlib.crc32(kind.encode()), number])
        self.said: dict[str, Any] = {}

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def some(self, n: int, p: float) -> np.ndarray:
        return self.rng.random(n) < p

    def note(self, **said: Any) -> None:
        self.said |= said


def short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        layout = f"strides {value.strides}" if value.size > 8 else value.tolist()
        return f"array({value.dtype}, {value.shape}, {layout})"
    return repr(value) if len(repr(value)) < 200 else f"{repr(value)[:200]}..."


def bits(value: Any) -> bytes:
    """Of a result. NaN is NaN, whatever it holds."""
    value = np.array(value)
    if value.dtype.kind in "fV":
        value[np.isnan(value)] = np.nan
    return value.tobytes()


def called(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The call, where nothing may warn and no error state of NumPy may matter."""
    with np.errstate(all="raise"):
        return function(*arguments, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Sizes, logits, targets
# ---------------------------------------------------------------------------------------------------------------------


def sizes(draw: Draw) -> tuple[int, int]:
    """Rows and classes. One of both is at an edge, the other what is left of the number of elements."""
    if draw.chance(0.04):  # few long rows
        classes = draw.pick(LONG)
        return int(draw.rng.integers(1, max(2, 100_000 // classes) + 1)), classes
    most = draw.pick([300, 1000, 4200, 4200, 9000, 30_000])

    def size(limit: int) -> int:
        if draw.chance(0.25):
            return max(1, int(np.exp(draw.rng.uniform(0, np.log(limit)))))
        return draw.pick([n for n in EDGES if n <= limit])

    first = size(most)
    both = first, size(max(most // first, 1))
    return both if draw.chance(0.5) else both[::-1]


def shape_of(draw: Draw, rows: int, classes: int) -> tuple[tuple[int, ...], int]:
    """The shape of the rows, and the axis of the classes."""
    lead: tuple[int, ...] = (rows,)
    if rows == 1 and draw.chance(0.4):
        lead = ()
    elif draw.chance(0.3):
        divisors = [n for n in (2, 3, 4, 7, 8, 16) if rows % n == 0]
        if divisors:
            first = draw.pick(divisors)
            lead = (first, rows // first) if draw.chance(0.7) else (rows // first, 1, first)
    return lead, int(draw.rng.integers(-len(lead) - 1, len(lead) + 1))


def in_shape(a: np.ndarray, lead: tuple[int, ...], axis: int) -> np.ndarray:
    """An array by row and class in the shape of the call."""
    return np.ascontiguousarray(np.moveaxis(a.reshape(*lead, a.shape[-1]), -1, axis))


LOGITS = ("ties", "constant", "confident", "offset", "masked", "masked", "no number", "huge", "lowest", "tiny", "wide")


def logits(draw: Draw, rows: int, classes: int, dtype: Any, *, largest: float = np.inf) -> np.ndarray:
    """Rows of several kinds: some of them may be hard, or have no probabilities."""
    rng, info = draw.rng, np.finfo(dtype)
    x = rng.normal(0, draw.pick([0.1, 1, 3, 10]), (rows, classes))
    kinds = [] if draw.chance(0.3) else [draw.pick(LOGITS) for _ in range(draw.pick([1, 1, 2, 4]))]
    draw.note(logits=kinds)
    with np.errstate(all="ignore"):
        for kind in kinds:
            harder(draw, kind, x, info)
        # The dtype holds differences, and float64 their sums.
        largest = min(float(info.max) / 2.1, largest, 1e250)
        return np.clip(x, -largest, largest, where=np.isfinite(x), out=x).astype(dtype)


def harder(draw: Draw, kind: str, x: np.ndarray, info: Any) -> None:
    """Change some rows, or all."""
    rng, (rows, classes) = draw.rng, x.shape
    at = np.flatnonzero(np.ones(rows, bool) if draw.chance(0.4) else draw.some(rows, 0.4))
    if kind == "ties":
        x[at] = np.round(x[at])
    elif kind == "constant":
        x[at] = x[at, :1]
    elif kind == "confident":
        largest = 110 if info.bits == 32 else 750
        top = rng.integers(classes, size=at.size)
        x[at] -= np.where(np.isfinite(x[at]), x[at], 0).max(axis=1, keepdims=True)
        x[at, top] = rng.uniform(0, largest, at.size)
    elif kind == "offset":
        x[at] += rng.choice([-1, 1]) * 10.0 ** rng.uniform(1, 6)
    elif kind == "masked":
        x[at] = np.where(rng.random((at.size, classes)) < draw.pick([0.1, 0.5, 0.95]), -np.inf, x[at])
    elif kind == "no number":
        x[at, rng.integers(classes, size=at.size)] = rng.choice([np.nan, np.inf, -np.inf], at.size)
    elif kind == "huge":  # float64 cannot hold sums of its largest numbers, nor their squares
        x[at] *= float(info.max) / 40 if info.bits == 32 else 1e150
    elif kind == "lowest":
        x[at] = np.where(rng.random((at.size, classes)) < 0.5, float(info.min) if info.bits == 32 else -1e250, x[at])
    elif kind == "tiny":
        x[at] *= float(info.smallest_normal) * draw.pick([1e-3, 1, 100])
    else:
        x[at] *= draw.pick([10, 30, 100])


def labels(draw: Draw, x: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Class indices of every dtype, and what is ignored of them."""
    rows, classes = x.shape
    kind = draw.pick(["any", "any", "ends", "top", "one"])
    found = draw.rng.integers(classes, size=rows)
    if kind == "ends":
        found = draw.rng.choice(
            np.unique(np.clip([0, 1, 7, 15, classes - 16, classes - 2, classes - 1], 0, classes - 1)), rows
        )
    elif kind == "top":
        found = np.nan_to_num(x.astype(F64), nan=0).argmax(axis=1)
    elif kind == "one":
        found[:] = found[0]
    ignore_index = draw.pick([-100, -100, -100, None, -1, 0, classes - 1, 255, -(2**63), 2**63 - 1, 2**64 - 1, 10**30])
    if ignore_index != -100:
        options["ignore_index"] = ignore_index
    dtypes = [np.dtype(t) for t in "i1 i2 i4 i8 u1 u2 u4 u8 >i4 >u8".split()]
    fitting = [t for t in dtypes if classes - 1 <= np.iinfo(t).max]
    with_ignored = [
        t for t in fitting if ignore_index is not None and np.iinfo(t).min <= ignore_index <= np.iinfo(t).max
    ]
    ignored = draw.some(rows, draw.pick([0, 0.1, 0.5, 0.9, 1]))
    dtype = draw.pick(with_ignored if with_ignored else fitting)
    found = found.astype(dtype)
    if with_ignored:
        found[ignored] = ignore_index
    return found


def target_rows(draw: Draw, rows: int, classes: int, dtype: Any, in_unit: bool, least: int = -30) -> np.ndarray:
    """Probabilities from 10**least on, or what else is accepted in their place; exact in the dtype."""
    rng = draw.rng
    kind = draw.pick(["soft", "soft", "sums to 1", "one-hot", "bool", "sparse", "halves", "counts", "tiny"])
    draw.note(targets=kind)
    c = rng.random((rows, classes))
    if kind == "sums to 1":
        c = c**4 / (c**4).sum(axis=1, keepdims=True)
    elif kind in ("one-hot", "bool"):
        c = one_hot_rows(rng.integers(classes, size=rows), classes, F64)
        if kind == "bool":
            return c.astype(draw.pick([bool, np.int8, np.uint16, np.int64]))
    elif kind == "sparse":
        c[c < 0.8] = 0
    elif kind == "halves":
        return c.astype(np.float16)
    elif kind == "counts" and not in_unit:
        return rng.integers(0, 5, c.shape).astype(draw.pick([np.uint8, np.int32, F32, F64]))
    elif kind == "tiny":
        c *= 10.0 ** rng.uniform(least, 0, c.shape)
    return c.astype(dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------------------------


def weights(draw: Draw, n: int, dtype: Any) -> np.ndarray:
    """Finite numbers >= 0."""
    w = draw.rng.uniform(0.5, 2, n)
    kind = draw.pick(["some", "some", "with 0", "nearly all 0", "0", "small", "large", "any size", "integers"])
    if kind == "with 0":
        w[draw.some(n, 0.4)] = 0
    elif kind == "nearly all 0":
        w[draw.some(n, 0.9)] = 0
    elif kind == "0":
        w[:] = 0
    elif kind == "small":
        w *= 1e-15
    elif kind == "large":
        w *= 1e6
    elif kind == "any size":
        w *= 10.0 ** draw.rng.uniform(-15, 6, n)
    elif kind == "integers":
        return draw.rng.integers(0, 4, n).astype(draw.pick([np.uint8, np.int64, bool]))
    return w.astype(draw.pick([dtype, F32, F64]))


def factors(draw: Draw, shape: tuple[int, ...], dtype: Any) -> Any:
    """Of gradients: numbers of any size and sign."""
    size = draw.pick([1, 1, 1, 65536.0, 1e-6, 1e12, 1e-30])
    if not shape or draw.chance(0.3):
        return draw.pick([1.0, -1.5, 0.0, 3, np.float32(0.3), np.float64(-0.7)]) * size
    some = draw.rng.normal(0, 1, shape) * size
    some[draw.rng.random(shape) < 0.1] = 0
    return some.astype(draw.pick([dtype, F64]))


def options_of(
    draw: Draw, names: frozenset[str], lead: tuple[int, ...], shape: tuple[int, ...], classes: int, dtype: Any
) -> dict[str, Any]:
    """Any of the options, with values of any size."""
    chosen: dict[str, Any] = {}
    given = draw.pick([0, 0.15, 0.35, 0.7])

    def take(name: str) -> bool:
        return name in names and draw.chance(given)

    if "reduction" in names:
        chosen["reduction"] = draw.pick(["none", "none", "mean", "sum"])
        if chosen["reduction"] == "mean" and take("normalizer"):
            chosen["normalizer"] = draw.pick([1, 7.5, 1e-6, 1e6, 1e-20])
    for name, size in (("weight", classes), ("pos_weight", classes), ("sample_weight", int(np.prod(lead, dtype=int)))):
        if take(name):
            chosen[name] = weights(draw, size, dtype).reshape(lead if name == "sample_weight" else (size,))
    if take("upstream"):
        chosen["upstream"] = factors(draw, shape if chosen["reduction"] == "none" else (), dtype)
    if take("label_smoothing"):
        chosen["label_smoothing"] = draw.pick([0.0, 0.1, 0.1, 1.0, 1, 0.999, 1e-10, float(draw.rng.random())])
    if take("z_loss"):
        chosen["z_loss"] = draw.pick([0.0, 1e-4, 1e-4, 0.5, 10, 1e-20])
    if take("temperature"):
        chosen["temperature"] = draw.pick(
            [0.5, 0.7, 2.0, 3, 1e-3, 1e3, 1e-15, 1e15, float(np.exp(draw.rng.uniform(-3, 3)))]
        )
    if take("softcap"):
        chosen["softcap"] = draw.pick([5.0, 30.0, 50.3, 1e-3, 1e4, 1e-15, 1e15, float(np.exp(draw.rng.uniform(0, 4)))])
    return chosen


def room(options: dict[str, Any]) -> int:
    """How many roundings options add."""
    plain = {"reduction": "none", "ignore_index": None, "axis": None}
    given = {k for k, v in options.items() if k not in plain or (k == "reduction" and v != "none")}
    return OPTION_ULPS * bool(given - {"temperature", "softcap"}) + ("temperature" in given) + ("softcap" in given)


# ---------------------------------------------------------------------------------------------------------------------
# Where arrays lie
# ---------------------------------------------------------------------------------------------------------------------


def laid(draw: Draw, a: np.ndarray, name: str) -> np.ndarray:
    """The same numbers somewhere in memory."""
    if not a.ndim or draw.chance(0.4):
        return a
    ways = LAYOUTS | (NOT_ONE_STRIDE if a.ndim == 3 else {})
    way = draw.pick([way for way in ways if a.dtype != BF16 or "swapped" not in way])
    draw.note(**{f"layout of {name}": way})
    return ways[way](a)


def broadcast(draw: Draw, x: np.ndarray) -> np.ndarray:
    """Rarely one row, or one class, in place of all."""
    if draw.chance(0.03):
        draw.note(broadcast=True)
        return np.broadcast_to(x[:1] if draw.chance(0.5) else x[:, :1], x.shape)
    return x


class Buffer:
    """Memory for a result that lies in any way which is allowed, between numbers that must stay."""

    def __init__(self, draw: Draw, shape: tuple[int, ...], dtype: Any) -> None:
        self.step, self.beside = draw.pick([(1, 0), (1, 0), (1, 1), (2, 0)])
        self.order, self.flip, self.shape = draw.pick("CCF"), draw.pick([1, 1, -1]), shape
        self.memory = np.full(int(np.prod(self.outer)), -3, dtype)
        self.array = self.view(self.memory)

    @property
    def outer(self) -> tuple[int, ...]:
        return tuple(n * self.step + 2 * self.beside for n in self.shape)

    def view(self, memory: np.ndarray) -> np.ndarray:
        at = tuple(np.s_[self.beside : self.beside + n * self.step : self.step] for n in self.shape)
        whole = memory.reshape(self.outer, order=self.order)
        return whole[at][(np.s_[:: self.flip],) * len(self.shape)] if self.shape else whole

    def untouched(self) -> bool:
        return bool((self.memory == self.memory.dtype.type(-3)).all())

    def kept_the_rest(self) -> bool:
        rest = np.ones(self.memory.shape, bool)
        self.view(rest)[...] = False
        return bool((self.memory[rest] == self.memory.dtype.type(-3)).all())


def can_hold(a: np.ndarray, dtype: Any) -> bool:
    """Whether a result of that dtype may be written to the array."""
    return bool(a.dtype == dtype and a.dtype.isnative and a.flags.writeable and a.flags.aligned and 0 not in a.strides)


# ---------------------------------------------------------------------------------------------------------------------
# Families of functions
# ---------------------------------------------------------------------------------------------------------------------


def largest_of(family: Family, dtype: Any) -> float:
    """Up to which logits a row's sum of gaps is no problem. Only that of a label is held in float64."""
    return np.inf if family.has_labels or family is MAPS or dtype == F64 else 1e20


def arguments_of(draw: Draw, family: Family, x: np.ndarray, dtype: Any, options: dict[str, Any]) -> list[np.ndarray]:
    """By row and class. x is in the dtype that is computed in."""
    rows, classes = x.shape
    made: list[np.ndarray] = []
    for name in family.names:
        if name in ("logits", "x"):
            made.append(x)
        elif name == "y":
            made.append(softmax_of(x, log=family.name.startswith("log")))
        elif name == "vectors":
            made.append((draw.rng.normal(0, draw.pick([1, 1e-3, 1e4]), x.shape)).astype(dtype))
        elif name == "upstream":
            kind = draw.pick(["normal", "one", "large"])
            u = draw.rng.normal(0, 1, x.shape) * (1e6 if kind == "large" else 1)
            made.append(
                (u if kind != "one" else one_hot_rows(draw.rng.integers(classes, size=rows), classes, F64)).astype(
                    dtype
                )
            )
        elif name == "targets" and family.has_labels:
            made.append(labels(draw, x, options))
        elif name == "target_logits" and family.fixed["targets"] == "logits":
            near = draw.chance(0.5)
            other = logits(draw, rows, classes, dtype, largest=largest_of(family, dtype))
            with np.errstate(all="ignore"):
                made.append(
                    x + draw.pick([0, 1e-4, 0.1]) * draw.rng.normal(size=x.shape).astype(dtype) if near else other
                )
        elif name == "target_logits":
            made.append(target_rows(draw, rows, classes, dtype, False))
        else:
            in_unit = family.name in ("sigmoid", "two_term")
            # Their product with weights, or with factors of vectors, is formed first: it must be a normal number.
            c = target_rows(draw, rows, classes, dtype, in_unit, -6 if in_unit or family in CURVATURE else -30)
            # With one class that is not certain, the two-term form is infinite.
            made.append(np.ones_like(c) if classes == 1 and family.name == "two_term" else c)
    return made


class Comparison:
    """Results of one set of arguments against the exact values, and with each other."""

    def __init__(self, draw: Draw, want: Any, stored: np.dtype, computed: np.dtype, more: float) -> None:
        self.draw, self.want, self.stored, self.computed, self.more = draw, want, stored, computed, more
        self.bits: dict[tuple[Any, ...], bytes] = {}
        self.unsure: dict[str, np.ndarray] = {}  # which of the exact values say nothing

    def __call__(self, function: Function, got: dict[str, Any], how: str, *, more: float = 0, same: Any = None) -> None:
        """Results that have been computed in the `same` way are the same to the bit."""
        for name, value in got.items():
            what, number = f"{function.id}, {how}: {name}", getattr(self.want, name)
            small = name in ("loss", "lse")
            dtype = self.computed if small else self.stored
            assert isinstance(value, (np.ndarray, np.generic)) and value.dtype == dtype, (
                f"{what}: {type(value)}, {value.dtype}"
            )
            assert np.shape(value) == number.value.shape, f"{what}: shape {value.shape}, expected {number.value.shape}"
            if same is not None:
                assert self.bits.setdefault((name, same), bits(value)) == bits(value), (
                    f"{what}: another call gave other bits"
                )
            if name in self.unsure:
                with np.errstate(over="ignore"):
                    value = np.where(self.unsure[name], number.value.astype(value.dtype), value)
            if dtype.itemsize == 2:
                assert_rounded(np.asarray(value), number, dtype, what, self.more + more)
            else:
                assert_within(value, number, what, more=self.more + more)


def within_contract(options: dict[str, Any], x: np.ndarray, dtype: np.dtype, family: Family) -> dict[str, Any]:
    """The options without those whose bounds say nothing with these logits.

    A capped logit is off by 2 eps; divided by a low temperature that is any exponential. A slope of the softcap which
    is subnormal is off by a step, and large factors, or those of second derivatives, make it more."""
    options, info = dict(options), np.finfo(dtype)
    cap = options.get("softcap")
    largest = float(np.abs(x[np.isfinite(x)]).max(initial=0))
    if largest / options.get("temperature", 1) > largest_of(family, dtype) * 10:
        options.pop("temperature", None)
    if largest > 1e25 and info.bits == 32 and "label_smoothing" in options:  # sums of gaps are multiplied by it
        options.pop("weight", None)
    if family.name == "two_term" and "weight" in options:  # the bound is that of terms of the same size
        w = np.asarray(options["weight"]).astype(F64)
        if w.min() < 1e-3 * w.max():
            options.pop("weight")
    if family in CURVATURE and not 1e-3 <= options.get("temperature", 1) <= 1e3:  # of which the square counts
        options.pop("temperature")
    if smallest_factor(options) < float(info.smallest_normal):  # one that is subnormal is off by a step
        for drop in ("upstream", "sample_weight"):
            options.pop(drop, None)
    if family in CURVATURE and np.abs(options.get("upstream", 1)).max() < 1e-3:  # factors of vectors become subnormal
        options.pop("upstream")
    if family.name == "sigmoid" and np.isnan(x).any():  # 0 times NaN
        options.pop("weight", None)
    if cap is None:
        return options
    for drop in ("temperature", "softcap"):
        if 4 * min(largest, cap) / options.get("temperature", 1) * float(info.eps) > 0.05:
            options.pop(drop, None)
    if largest > (40 if info.bits == 32 else 340) * cap:
        if family in CURVATURE:
            options.pop("softcap", None)
        for drop in ("upstream", "normalizer", "weight", "sample_weight", "z_loss", "temperature"):
            options.pop(drop, None)
    return options


def smallest_factor(options: dict[str, Any]) -> float:
    """Of the factors of gradients that are not 0, or less: without what a mean divides by."""
    factor = 1e-12 if options.get("reduction") == "mean" else 1.0
    for name in ("upstream", "sample_weight"):
        sizes = np.abs(np.asarray(options.get(name, 1)).astype(F64))
        factor *= sizes.min(initial=1, where=sizes > 0)
    return float(factor / max(options.get("temperature", 1), 1))


def heaviest(options: dict[str, Any]) -> float:
    """What a step of the subnormal grid may be multiplied by in the two-term form."""
    names = ("weight", "pos_weight", "sample_weight", "upstream")
    sizes = [float(np.abs(np.asarray(options.get(name, 1)).astype(F64)).max(initial=1)) for name in names]
    return float(np.prod(sizes)) / min(options.get("normalizer", 1), 1)


def is_too_large(want: Any, dtype: np.dtype) -> bool:
    """Whether a gradient comes near the largest number: then one of its factors may be infinite."""
    names = [name for name in ("grad", "hess", "hvp") if hasattr(want, name)]
    sizes = [getattr(want, name).size for name in names]
    return any((s[np.isfinite(s)] > LD(np.finfo(dtype).max) / 1000).any() for s in sizes)


def with_floor(want: Any, rows: str, options: dict[str, Any]) -> Any:
    """A sum is off by as many steps of the subnormal grid as its terms are."""
    if options.get("reduction", "none") == "none" or not hasattr(want, rows):
        return want
    loss, parts = want.loss, getattr(want, rows)
    floor = LD(np.broadcast_to(parts.floor, parts.value.shape).sum()) + 2
    if options["reduction"] == "mean":
        with np.errstate(all="ignore"):
            total = parts.size.sum()
            factor = loss.size / total if total > 0 and np.isfinite(total) else LD(0)
        floor = floor * factor + 2
    return want._replace(loss=loss._replace(floor=floor))


def storage(draw: Draw, family: Family) -> tuple[np.dtype, np.dtype]:
    """The dtype of the array that the gradient is of, and what is computed in."""
    stored = draw.pick([F32] * 6 + [F64] * 5 + [F16, BF16] + [np.int8, np.uint16, np.int64, bool])
    stored = np.dtype(stored)
    if stored.kind in "iub":
        stored = np.dtype(F64) if "y" in family.names else stored
        return stored, np.dtype(F64)
    return stored, np.dtype(F32) if stored.itemsize == 2 else stored


def not_even_in_long_double(want: Any, x: np.ndarray, axis: int) -> dict[str, np.ndarray]:
    """Results of the two-term form in rows whose maximum is so far above the others that 1 - p is 0, or nearly."""
    with np.errstate(all="ignore"):
        two = np.sort(np.moveaxis(x, axis, -1).astype(LD), axis=-1)[..., -2:]
        far = np.isfinite(two[..., -1]) & (two[..., -1] - two[..., 0] > 1e4) & (x.shape[axis] > 1)
    loss = far if want.loss.value.ndim else far.any()
    return {"loss": loss & ~np.isfinite(want.loss.value), "grad": np.expand_dims(far, axis)}


def no_underflow(wide: list[np.ndarray], whole: list[np.ndarray], options: dict[str, Any], dtype: np.dtype) -> None:
    """Where p is 0 the divergence is infinite, unless q is 0 too, or less than the dtype holds. It becomes 0."""
    x, t = wide
    with np.errstate(all="ignore"):
        gap = (t.max(axis=options.get("axis", -1), keepdims=True) - t) / options.get("temperature", 1.0)
    t = np.where((x == -np.inf) & (gap > (80 if dtype == F32 else 700)), -np.inf, t).astype(t.dtype)
    wide[1] = whole[1] = t


def fuzz_family(draw: Draw, family: Family) -> None:
    rows, classes = sizes(draw)
    lead, axis = shape_of(draw, rows, classes)
    stored, computed = storage(draw, family)
    draw.note(rows=rows, classes=classes, lead=lead, axis=axis, dtype=stored)
    x = broadcast(draw, logits(draw, rows, classes, computed, largest=largest_of(family, computed)))
    with np.errstate(all="ignore"):
        if stored.kind in "iub":
            x = np.clip(np.nan_to_num(x), 0 if stored.kind != "i" else -100, 100).astype(stored)
        elif stored.itemsize == 2:
            x = x.astype(stored)
    options: dict[str, Any] = {}
    arrays = arguments_of(draw, family, x.astype(computed), computed, options)
    shape = in_shape(x, lead, axis).shape
    row_shape = lead if family.by_row else shape
    options |= options_of(draw, family.options, lead, row_shape, classes, computed)
    main = len(arrays) - 1 if family.names[-1] == "y" else 0
    wide = list(arrays)
    if stored.kind in "iub":
        arrays[0] = x
    elif stored.itemsize == 2:
        with np.errstate(all="ignore"):
            arrays[main] = arrays[main].astype(stored)
        wide[main] = arrays[main].astype(computed)
    whole = [in_shape(a, lead, axis) if a.ndim == 2 else a.reshape(lead) for a in arrays]
    wide = [in_shape(a, lead, axis) if a.ndim == 2 else a.reshape(lead) for a in wide]
    if draw.chance(0.8) or axis != -1:
        options["axis"] = axis
    options = within_contract(options, wide[0], computed, family)
    if family.name == "kl":
        no_underflow(wide, whole, options, computed)
    want = family.exact(*wide, **options)
    if is_too_large(want, computed):
        options = {k: v for k, v in options.items() if k not in ("upstream", "normalizer", "weight", "sample_weight")}
        want = family.exact(*wide, **options)
    if is_too_large(want, computed):
        return
    if family.name in ("sigmoid", "two_term"):
        floor = 2 + 2 * heaviest(options) * (1 if family.name == "sigmoid" else classes)
        want = want._replace(**{n: getattr(want, n)._replace(floor=floor) for n in ("loss", "grad", "parts")})
    if family in PRODUCTS:  # a product is divided by the temperature after it has become subnormal
        steps = want.grad.floor / min(1, options.get("temperature", 1))
        want = want._replace(grad=want.grad._replace(floor=steps))
    for rows_name in ("rows", "parts"):
        want = with_floor(want, rows_name, options)
    given = [
        np.broadcast_to(a, a.shape) if a.size and 0 in arrays[k].strides else laid(draw, a, family.names[k])
        for k, a in enumerate(whole)
    ]
    for name in ("weight", "pos_weight", "sample_weight", "upstream"):
        if isinstance(options.get(name), np.ndarray):
            options[name] = laid(draw, options[name], name)
    draw.note(options={k: short(v) for k, v in options.items()}, arrays=[short(a) for a in given])
    before = [a.tobytes() for a in (*given, *(v for v in options.values() if isinstance(v, np.ndarray)))]
    # A result has the dtype of the array that it is the gradient of.
    result_dtype = np.dtype(F64) if stored.kind in "iub" else stored
    compare = Comparison(draw, want, result_dtype, computed, room(options))
    if family is TWO_TERM:
        compare.unsure = not_even_in_long_double(want, wide[0], options.get("axis", -1))
    for function in family.functions:
        taken = function.taken(options)
        got = called(function, *given, num_threads=1, **taken)
        # grad_hess has the gradient of another function, which is computed elsewhere
        compare(function, got, "one thread", same="given")
        after = [a.tobytes() for a in (*given, *(v for v in options.values() if isinstance(v, np.ndarray)))]
        assert after == before, f"{function.id}: an argument was modified"
        threads = draw.pick([None, 2, 3, 7])
        compare(function, called(function, *given, num_threads=threads, **taken), f"{threads} threads", same="given")
        if draw.chance(0.3) and result_dtype.itemsize > 2:
            flushed(function, given, taken, got)
        if function.out is not None or "hess" in function.returns:
            to_buffers(draw, compare, function, given, main, taken, result_dtype)
        if function.name == "cross_entropy_grad":
            from_stats(draw, compare, family, given, wide, taken, options)
    if family in ONE_TERM and draw.chance(0.3):
        layer(draw, given, options)


def flushed(function: Function, given: list[np.ndarray], options: dict[str, Any], kept: dict[str, Any]) -> None:
    if "subnormals" not in inspect.signature(getattr(fastce, function.name)).parameters:
        return
    for name, value in called(function, *given, subnormals="flush", **options).items():
        expected = np.asarray(kept[name])
        if name != "loss":
            least = 2.0**-100 if value.dtype == F32 else 2.0**-900
            expected = np.where(np.abs(expected) < least, np.copysign(0, expected), expected).astype(value.dtype)
        assert expected.shape == np.shape(value)
        np.testing.assert_array_equal(value, expected, err_msg=f"{function.id}: {name}, flushed")
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(value)[numbers], np.signbit(expected)[numbers], err_msg=function.id)


def to_buffers(
    draw: Draw,
    compare: Comparison,
    function: Function,
    given: list[np.ndarray],
    main: int,
    options: dict[str, Any],
    dtype: np.dtype,
) -> None:
    """With `out`, and in place."""
    results = ("grad", "hess") if function.out is None else (function.out,)
    computed = np.dtype(F32) if dtype.itemsize == 2 else dtype
    shapes = [getattr(compare.want, name).value.shape for name in results]
    buffers = [Buffer(draw, s, computed if function.out == "lse" else dtype) for s in shapes]
    arrays = [b.array for b in buffers]
    got = called(function, *given, **options, out=arrays[0] if len(arrays) == 1 else tuple(arrays))
    for name, buffer in zip(results, buffers, strict=True):
        assert got[name] is buffer.array, f"{function.id}: {name} is not out"
        assert buffer.kept_the_rest(), f"{function.id}: written beside out"
    compare(function, got, "out")
    x = given[main]
    places = [k for k, a in enumerate(given) if a.shape == x.shape and can_hold(a, dtype) and a.dtype.kind in "fV"]
    if function.out == "lse" or not places:
        return
    k = draw.pick(places)
    buffer = given[k].copy(order="K") if draw.chance(0.3) else in_same_place(given[k])
    again = [buffer if j == k else a for j, a in enumerate(given)]
    out = buffer if len(results) == 1 else draw.pick([(buffer, np.empty_like(buffer)), (np.empty_like(buffer), buffer)])
    got = called(function, *again, **options, out=out)
    assert any(value is buffer for value in got.values())
    compare(function, got, f"in place of argument {k}")


def in_same_place(a: np.ndarray) -> np.ndarray:
    """A copy of an array that lies in a copy of its memory in the same way."""
    reach = [s * (n - 1) for s, n in zip(a.strides, a.shape, strict=True)]
    before, behind = -sum(r for r in reach if r < 0), sum(r for r in reach if r > 0)
    memory = np.zeros(before + behind + a.itemsize, np.uint8)
    copy = np.ndarray(a.shape, a.dtype, memory, before, a.strides)
    copy[...] = a
    return copy


def from_stats(
    draw: Draw,
    compare: Comparison,
    family: Family,
    given: list[np.ndarray],
    wide: list[np.ndarray],
    options: dict[str, Any],
    all_options: dict[str, Any],
) -> None:
    """Statistics of the forward, and the gradient from them."""
    forward, backward = family.functions[0], family.functions[2]
    taken = forward.taken(all_options)
    loss, stats = called(fastce.cross_entropy, *given, **taken, return_stats=True)
    compare(forward, {"loss": loss}, "with stats", same="given")
    check_stats(compare.want, stats, wide[0], compare.computed, all_options)
    if draw.chance(0.5):
        fused = called(fastce.cross_entropy_with_grad, *given, **options, return_stats=True)
        for mine, theirs in zip(fused[2], stats, strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg="stats of the fused call")
        compare(family.functions[1], {"loss": fused[0], "grad": fused[1]}, "with stats", same="given")
    rows = [laid(draw, np.asarray(a), "stats") for a in stats]
    ready = fastce.SoftmaxStats(*rows) if draw.chance(0.5) else tuple(stats)
    got = called(backward, *given, **options, stats=ready)
    compare(backward, got, "from stats", more=1, same="from stats")
    compare(
        backward,
        called(backward, *given, **options, stats=ready, num_threads=3),
        "from stats",
        more=1,
        same="from stats",
    )


def check_stats(want: Any, stats: Any, x: np.ndarray, dtype: np.dtype, options: dict[str, Any]) -> None:
    """row_max is exact, tail is a sum of exponentials; those of ignored rows too. Rows without probabilities are left
    out: their maximum may be NaN or not."""
    row_max, tail = (np.asarray(a) for a in stats)
    assert row_max.dtype == tail.dtype == dtype and row_max.shape == tail.shape == want.row_max.shape
    axis, cap, temperature = options.get("axis", -1), options.get("softcap"), LD(options.get("temperature", 1.0))
    z = np.moveaxis(x, axis, -1).astype(LD)
    eps = LD(np.finfo(dtype).eps)
    with np.errstate(all="ignore"):
        if cap is not None:
            z = np.where(np.isinf(z), z, LD(cap) * np.tanh(z / LD(cap)))
        distance = (z.max(axis=-1, keepdims=True) - z) / temperature
        e, finite = np.exp(-distance), np.where(np.isfinite(distance), distance, 0)
        top = np.argmax(z, axis=-1, keepdims=True)
        room = (4 + finite) * e
        if cap is not None:
            room = room + 4 * np.abs(np.where(np.isfinite(z), z, 0)).max(axis=-1, keepdims=True) / temperature * e
        np.put_along_axis(room, top, 0, -1)
        good = np.isfinite(want.row_max) & ~np.isnan(x).any(axis=axis)
        if cap is None:
            assert (row_max == want.row_max)[good].all(), "row_max"
        else:
            off = (
                np.abs(row_max - want.row_max)
                <= 2 * eps * np.abs(want.row_max) + 2 * np.finfo(dtype).smallest_subnormal
            )
            assert off[good].all(), "row_max"
        allowed = room.sum(axis=-1) * eps + (1 + z.shape[-1]) * LD(np.finfo(dtype).smallest_subnormal)
        wrong = good & ~(np.abs(tail - want.tail) <= allowed)
        assert not wrong.any(), f"tail {np.argwhere(wrong)[0]}: {tail[wrong][0]!r}, expected {want.tail[wrong][0]!r}"


def layer(draw: Draw, given: list[np.ndarray], options: dict[str, Any]) -> None:
    """Its options may be given to it or to the call."""
    options = dict(options)
    upstream = options.pop("upstream", 1.0)
    early = {name for name in options if draw.chance(0.5)} - ({"normalizer"} if "reduction" in options else set())
    ce = fastce.CrossEntropyLoss(**{name: options[name] for name in early})
    loss = called(ce, *given, **{name: value for name, value in options.items() if name not in early})
    grad = called(ce.backward, upstream)
    want_loss, want = fastce.cross_entropy_with_grad(*given, **options, upstream=upstream)
    np.testing.assert_array_equal(loss, want_loss, err_msg="loss of the layer")
    assert grad.shape == want.shape and grad.dtype == want.dtype
    # the layer multiplies by a scalar `upstream`, or computes from the statistics
    size = np.abs(want.astype(F64))
    largest = size[np.isfinite(size)].max(initial=0)
    tolerance = 0.05 if grad.dtype.itemsize == 2 else 1e4 * float(np.finfo(grad.dtype).eps)
    np.testing.assert_allclose(
        grad.astype(F64), want.astype(F64), rtol=tolerance, atol=tolerance * largest, err_msg="layer"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Large arrays
# ---------------------------------------------------------------------------------------------------------------------


def fuzz_large(draw: Draw) -> None:
    """Gradients that are written past the caches. Blocks of rows, which are too small for that, give the same; and some
    rows are compared with the exact values."""
    families = [f for f in FAMILIES if f not in CURVATURE and f is not MAPS]
    family = INDEX if draw.chance(0.3) else draw.pick([*families, MAPS])
    functions = [f for f in family.functions if f.out not in (None, "lse")]
    dtype = np.dtype(draw.pick([F32, F32, F64]))
    across = draw.chance(0.3)
    if across:
        classes = draw.pick([3, 10, 17, 33, 40])
        elements = (1 << 20) + draw.pick([5, 100, 4097])
    else:
        classes = draw.pick([4097, 4099, 5000, 8191, 8193, 16385, 33000])
        elements = (3 << 21) + 10_000
    elements = elements * 4 // dtype.itemsize
    rows = elements // classes + 1
    few = 70 if not across else 500
    x = logits(draw, few, classes, dtype, largest=largest_of(family, dtype))
    options: dict[str, Any] = {}
    arrays = arguments_of(draw, family, x, dtype, options)
    if family.has_labels and not (arrays[1] == options.get("ignore_index", -100)).all():
        arrays[1][: few // 2] = np.arange(few // 2) % min(16, classes)  # before the first whole line of memory
    options |= options_of(draw, family.options, (few,), (few,) if family.by_row else (few, classes), classes, dtype)
    options = {k: v for k, v in options.items() if k not in ("reduction", "normalizer")}
    options |= {"reduction": "sum"} if family.is_reduced else {}
    if isinstance(options.get("upstream"), np.ndarray):
        options["upstream"] = -1.5
    draw.note(
        family=family.name,
        rows=rows,
        classes=classes,
        dtype=dtype,
        across=across,
        options={k: short(v) for k, v in options.items()},
    )
    some = np.r_[0:3, few - 2 : few]
    by_row = {k: v[some] if k == "sample_weight" else v for k, v in options.items()}
    options, by_row = (within_contract(o, x, dtype, family) for o in (options, by_row))
    want = family.exact(*(a[some] for a in arrays), **by_row)
    if is_too_large(want, dtype):
        return
    at = draw.rng.integers(few, size=rows)
    for end in (at[-few:], at[:few]):
        end[...] = np.arange(few)
    large = [np.ascontiguousarray(a[at].T).T if across and a.ndim == 2 else a[at] for a in arrays]
    for function in functions:
        taken = function.taken(options)
        small = {k: v for k, v in taken.items() if k != "sample_weight"}
        if "sample_weight" in taken:
            taken = taken | {"sample_weight": taken["sample_weight"][at]}
            small["sample_weight"] = options["sample_weight"]
        name = function.out
        assert name is not None
        got = called(function, *large, num_threads=draw.pick([1, 2]), **taken)[name]
        few_rows = [np.ascontiguousarray(a.T).T if across and a.ndim == 2 else a for a in arrays]
        block = called(function, *few_rows, num_threads=1, **small)[name]
        for start in range(0, rows, few):
            part, expected = got[start : start + few], block[at[start : start + few]]
            if bits(part) != bits(expected):
                different = ~((part == expected) | (np.isnan(part) & np.isnan(expected)))
                raise AssertionError(f"{function.id}: {np.argwhere(different)[:1]} from row {start} on")
        number = getattr(want, name)
        value = got[:few][some]
        if family is TWO_TERM:
            value = np.where(not_even_in_long_double(want, x[some], -1)[name], number.value.astype(dtype), value)
        assert_within(value, number, function.id, more=room(options))


# ---------------------------------------------------------------------------------------------------------------------
# The other functions
# ---------------------------------------------------------------------------------------------------------------------


def fuzz_predict(draw: Draw) -> None:
    rows, classes = sizes(draw)
    lead, axis = shape_of(draw, rows, classes)
    stored = np.dtype(draw.pick([F32, F64, F16, BF16, np.int8, np.uint64, np.int64, bool]))
    if stored.kind in "iub":
        x = draw.rng.integers(0, 2 if stored.kind == "b" else 120, (rows, classes)).astype(stored)
        if stored.itemsize == 8 and draw.chance(0.5):
            x += np.array(2**62, stored)
    else:
        x = logits(draw, rows, classes, F32 if stored.itemsize == 2 else stored)
        with np.errstate(all="ignore"):
            x = x.astype(stored)
    whole = laid(draw, in_shape(x, lead, axis), "logits")
    draw.note(array=short(whole), axis=axis)
    wide = whole.astype(F32) if stored in (F16, BF16) else np.asarray(whole)
    want = wide.argmax(axis)
    for threads in (None, 1, 2):
        got = called(fastce.predict, whole, axis=axis, num_threads=threads)
        assert np.shape(got) == want.shape and got.dtype == np.intp
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(called(reference.predict, whole, axis=axis), want)


def fuzz_one_hot(draw: Draw) -> None:
    classes, rows = draw.pick(EDGES[:30]), draw.pick(EDGES[:30])
    lead, axis = shape_of(draw, rows, classes)
    dtype = draw.pick([F32, F64, bool, np.int8, np.uint64, np.complex64, F16, ">f4"])
    found = draw.rng.integers(classes, size=lead)
    dtypes = [t for t in "i1 i2 i4 i8 u1 u2 u4 u8 >i4 >u8".split() if np.iinfo(t).max >= classes]
    given = laid(draw, np.asarray(found).astype(draw.pick(dtypes)), "labels")
    draw.note(labels=short(given), classes=classes, dtype=dtype, axis=axis)
    want = one_hot_rows(found, classes, bool, axis)
    for package in (fastce, reference):
        got = called(package.one_hot, given, classes, dtype=dtype, axis=axis)
        assert got.dtype == np.dtype(dtype) and got.shape == want.shape
        np.testing.assert_array_equal(got.astype(bool), want)
        assert (got.astype(bool) == (got.astype(F64 if got.dtype.kind != "c" else complex) == 1)).all()


def fuzz_evaluate(draw: Draw) -> None:
    """Ranks and predictions are exact, the other numbers within the bounds of the functions that give them too."""
    rows, classes = sizes(draw)
    lead, axis = shape_of(draw, rows, classes)
    stored = np.dtype(draw.pick([F32, F32, F64, F64, F16, BF16]))
    dtype = np.dtype(F32) if stored.itemsize == 2 else stored
    with np.errstate(all="ignore"):
        x = logits(draw, rows, classes, dtype).astype(stored)
        wide = x.astype(dtype)
    options: dict[str, Any] = {}
    found = labels(draw, wide, options)
    if draw.chance(0.3):
        options["temperature"] = draw.pick([0.5, 2.0, 0.7])
    ignored = options.get("ignore_index", -100)
    kept = np.ones(rows, bool) if ignored is None else found != ignored
    whole, given = laid(draw, in_shape(x, lead, axis), "logits"), laid(draw, found.reshape(lead), "labels")
    ks = draw.pick([(1, 5), 1, [3], (2, classes, 10 * classes), np.int64(4)])
    draw.note(logits=short(whole), labels=short(given), axis=axis, options=options, top_k=ks)
    threads = draw.pick([None, 1, 2])
    got, by_row = called(
        fastce.evaluate, whole, given, top_k=ks, axis=axis, **options, return_rows=True, num_threads=threads
    )
    alone = called(fastce.evaluate, whole, given, top_k=ks, axis=axis, **options)
    assert repr(alone) == repr(got)
    for name, part in zip(by_row._fields, by_row, strict=True):
        assert np.shape(part) == lead, name
    parts = {name: np.reshape(part, rows) for name, part in zip(by_row._fields, by_row, strict=True)}
    has = ~(np.isnan(wide).any(axis=1) | (wide == np.inf).any(axis=1) | (wide == -np.inf).all(axis=1))
    place = np.where(kept, found, 0).astype(np.intp)
    of_label = wide[np.arange(rows), place]
    with np.errstate(invalid="ignore"):
        before = (wide == of_label[:, None]) & (np.arange(classes) < place[:, None])
        rank = (wide > of_label[:, None]).sum(axis=1) + before.sum(axis=1)
    rank = np.where(kept & has, rank, -1)
    np.testing.assert_array_equal(parts["rank"], rank, err_msg="rank")
    np.testing.assert_array_equal(parts["predicted"], np.where(kept, wide.argmax(axis=1), -1), err_msg="predicted")
    assert got.rows == kept.sum()
    for k in [ks] if np.ndim(ks) == 0 else ks:
        assert got.hits[int(k)] == ((rank >= 0) & (rank < int(k))).sum(), f"hits of {k}"
    more = "temperature" in options
    want = exact(wide, found, reduction="none", **options)
    assert_within(0 - parts["log_probability"], want.loss, "log_probability", more=more)
    entropies = exact_entropy(wide, reduction="none", temperature=options.get("temperature", 1.0)).loss
    confidence = 1 / (1 + want.tail)
    with np.errstate(all="ignore"):
        bad, gap = ~has, want.gap * want.tail / (1 + want.tail)
    for name, number in (
        ("entropy", entropies),
        ("confidence", Number(np.where(bad, np.nan, confidence), confidence, gap * confidence)),
    ):
        clean = [np.where(kept, a, 0) if np.ndim(a) else a for a in number[:4]]
        assert_within(parts[name], Number(*clean, number.ulps), name, more=more)


def fuzz_linear(draw: Draw) -> None:
    """Of integers, whose products and sums are exact: the loss is within the bounds of cross-entropy, and so are the
    gradients but for the sums over classes or rows."""
    dtype = np.dtype(draw.pick([F32, F64]))
    rows, classes = draw.pick([n for n in EDGES if n <= 130]), draw.pick([n for n in EDGES if n <= 260])
    features, lead = draw.pick([1, 2, 3, 8, 17]), (rows,)
    if draw.chance(0.3) and rows % 4 == 0:
        lead = (4, rows // 4)
    elif rows == 1 and draw.chance(0.5):
        lead = ()
    hidden = draw.rng.integers(-3, 4, (rows, features)).astype(dtype)
    weight = draw.rng.integers(-3, 4, (classes, features)).astype(dtype)
    bias = draw.rng.integers(-9, 10, classes).astype(dtype) if draw.chance(0.5) else None
    x = hidden @ weight.T + (0 if bias is None else bias)
    options: dict[str, Any] = {}
    found = labels(draw, x, options)
    options |= options_of(draw, INDEX.options, lead, lead, classes, dtype)
    by_row = {
        k: np.reshape(v, rows) if k in ("sample_weight", "upstream") and np.ndim(v) else v for k, v in options.items()
    }
    want = with_floor(INDEX.exact(x, found, **by_row), "rows", by_row)
    arguments = (
        laid(draw, hidden.reshape(*lead, features), "hidden"),
        laid(draw, weight, "weight"),
        laid(draw, found.reshape(lead), "labels"),
    )
    more: dict[str, Any] = {"chunk_bytes": draw.pick([None, None, 1, 40 * classes * dtype.itemsize])}
    if bias is not None:
        more["linear_bias"] = laid(draw, bias, "bias")
    draw.note(arrays=[short(a) for a in arguments], options={k: short(v) for k, v in (options | more).items()})
    forward = {k: v for k, v in options.items() if k != "upstream"} | {"reduction": options["reduction"]}
    loss = called(fastce.linear_cross_entropy, *arguments, **forward, **more)
    number = want.loss.rearranged(lambda a: a.reshape(lead)) if options["reduction"] == "none" else want.loss
    assert loss.dtype == dtype
    assert_within(loss, number, "loss", more=room(options))
    out, accumulate = None, draw.chance(0.3)
    if accumulate or draw.chance(0.3):
        shapes = ((*lead, features), (classes, features), (classes,))
        out = fastce.LinearGrads(*(draw.rng.integers(-3, 4, s).astype(dtype) for s in shapes))
        out = out if bias is not None else out._replace(bias=None)
    at_first = None if out is None else [None if a is None else a.copy() for a in out]
    loss, grads = called(
        fastce.linear_cross_entropy_with_grad, *arguments, **options, **more, out=out, accumulate=accumulate
    )
    assert_within(loss, number, "loss", more=room(options))
    least = (2.0**-100 if dtype == F32 else 2.0**-900) / float(np.finfo(dtype).smallest_subnormal)
    g = want.grad._replace(floor=want.grad.floor + least)  # smaller numbers are flushed before they are multiplied

    def product(by: Callable[[np.ndarray], np.ndarray], terms: int) -> Number:
        """A sum of that many terms, which is rounded at each step."""
        with np.errstate(all="ignore"):
            size = by(np.abs(g.size))
            floor = by(np.broadcast_to(g.floor, g.value.shape)) + terms
            return Number(by(g.value), size, by(g.extra) + terms * size, floor, g.ulps)

    a, b = np.abs(weight.astype(LD)), np.abs(hidden.astype(LD))
    value = {
        "hidden": (g.value @ weight.astype(LD)),
        "weight": g.value.T @ hidden.astype(LD),
        "bias": g.value.sum(axis=0),
    }
    sums = {
        "hidden": product(lambda m: m @ a, classes),
        "weight": product(lambda m: m.T @ b, rows),
        "bias": product(lambda m: m.sum(axis=0), rows),
    }
    for k, name in enumerate(fastce.LinearGrads._fields):
        if (name == "bias" and bias is None) or is_too_large(ExactProduct(sums[name]), dtype):
            continue
        want_of = sums[name]._replace(value=value[name])
        if accumulate and at_first is not None:
            start = at_first[k].astype(LD).reshape(want_of.value.shape)
            want_of = want_of._replace(
                value=want_of.value + start, extra=want_of.extra + (rows + 2) * (np.abs(start) + want_of.size)
            )
        got = getattr(grads, name)
        assert got.dtype == dtype and (out is None or got is getattr(out, name))
        assert_within(got.reshape(want_of.value.shape), want_of, name, more=room(options))


def fuzz_blocks(draw: Draw) -> None:
    """Rows whose classes are cut into blocks: the loss and the gradient of whole rows."""
    rows, classes = draw.pick([1, 2, 7, 33]), draw.pick([n for n in EDGES if n <= 300])
    lead, axis = shape_of(draw, rows, classes)
    dtype = np.dtype(draw.pick([F32, F64]))
    family = draw.pick(ONE_TERM)
    x = draw.rng.uniform(-7, 7, (rows, classes)).astype(dtype)
    if draw.chance(0.3) and classes > 1:
        x[:, draw.rng.random(classes) < 0.5] = -np.inf
        x[:, 0] = 0
    options: dict[str, Any] = {}
    _, targets = arguments_of(draw, family, x, dtype, options)
    if family.has_labels:
        options["ignore_index"] = options.get("ignore_index", -100)
    names = ("weight", "label_smoothing", "z_loss", "temperature", "softcap")
    given = options_of(draw, frozenset(names), lead, lead, classes, dtype)
    tame = {"temperature": 0.7, "softcap": 5.0, "z_loss": 1e-2}
    options |= {k: tame.get(k, draw.rng.random(classes) if k == "weight" else v) for k, v in given.items()}
    whole = in_shape(x, lead, axis), in_shape(targets, lead, axis) if targets.ndim == 2 else targets.reshape(lead)
    want = family.exact(*whole, **options, axis=axis)
    cuts = sorted({0, classes, *draw.rng.integers(classes + 1, size=draw.pick([0, 1, 3])).tolist()})
    draw.note(lead=lead, axis=axis, dtype=dtype, cuts=cuts, options={k: short(v) for k, v in options.items()})
    of_block = {k: v for k, v in options.items() if k != "z_loss"}
    blocks = []
    for start, stop in itertools.pairwise(cuts):
        at = [np.s_[:]] * (len(lead) + 1)
        at[axis] = np.s_[start:stop]
        part, of_part = (laid(draw, a[tuple(at)], "block") if a.ndim == len(at) else a for a in whole)
        blocks.append(((part, of_part), {"class_offset": start, "num_classes": classes, "axis": axis}))
    states = [called(fastce.block_stats, *arrays, **place, **of_block) for arrays, place in blocks]
    temperature = options.get("temperature", 1.0)
    merged = functools.reduce(lambda a, b: called(fastce.merge_stats, a, b, temperature=temperature), states)
    of_loss = {k: v for k, v in options.items() if k in ("z_loss", "temperature", "ignore_index")}
    loss = called(fastce.loss_from_stats, merged, whole[1], **of_loss)
    grads = [called(fastce.grad_from_stats, *arrays, merged, **place, **options) for arrays, place in blocks]
    room = 200 * float(np.finfo(dtype).eps)
    for name, got in (("loss", loss), ("grad", np.concatenate(grads, axis=axis))):
        expected = np.asarray(getattr(want, name).value)
        assert np.shape(got) == expected.shape, f"{name}: shape {np.shape(got)}, expected {expected.shape}"
        assert got.dtype == (F64 if name == "loss" else dtype), f"{name}: {got.dtype}"
        size = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
        np.testing.assert_allclose(got, expected.astype(F64), rtol=room, atol=room * size, err_msg=name)


# The reference's formulas are those of textbooks: they lose digits to cancellation.
TEXTBOOK = {F32: 2e-5, F64: 4e-14}


def fuzz_reference(draw: Draw) -> None:
    """Small numbers: its values are those of the definition, and it takes what fastce takes."""
    family = draw.pick(FAMILIES)
    shape, axis = draw.pick([(3, 4, 5), (7, 2), (1, 1), (9,), (2, 3, 2, 2)]), 0
    axis = int(draw.rng.integers(-len(shape), len(shape)))
    dtype = draw.pick([F32, F64])
    x = numbers(shape, dtype, int(draw.rng.integers(1000)))
    arrays = family.arguments(x, axis=axis, seed=int(draw.rng.integers(1000)))
    lead = tuple(np.delete(shape, axis))
    options = options_of(draw, family.options - {"upstream"}, lead, lead, shape[axis], dtype) | {"axis": axis}
    tame = {"temperature": 0.7, "softcap": 5.0, "z_loss": 1e-2, "normalizer": 3.0}
    options = {k: tame.get(k, v) for k, v in options.items()}
    for k in ("weight", "pos_weight", "sample_weight"):
        if k in options:
            options[k] = draw.rng.random(np.shape(options[k]))
    draw.note(family=family.name, shape=shape, dtype=dtype, options={k: short(v) for k, v in options.items()})
    given = [laid(draw, a, n) for n, a in zip(family.names, arrays, strict=True)]
    want = family.exact(*arrays, **options)
    room = TEXTBOOK[dtype] * 4
    for function in family.functions:
        got = function(*given, package=reference, **function.taken(options))
        for name, value in got.items():
            expected = np.asarray(getattr(want, name).value).astype(dtype)
            assert np.shape(value) == expected.shape and value.dtype == dtype, f"{function.id}: {name}"
            size = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
            np.testing.assert_allclose(value, expected, rtol=room, atol=room * size, err_msg=f"{function.id}: {name}")


# ---------------------------------------------------------------------------------------------------------------------
# Numbers of any kind, and what is no argument
# ---------------------------------------------------------------------------------------------------------------------


def any_bits(draw: Draw, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Numbers of every exponent, with NaN, infinities and subnormal numbers."""
    dtype = np.dtype(dtype)
    raw = draw.rng.integers(0, 256, (int(np.prod(shape, dtype=int)) * dtype.itemsize,), np.uint8)
    return raw.view(dtype).reshape(shape)


def fuzz_bits(draw: Draw) -> None:
    """Whatever the numbers are: no warning, nothing else is written, every number of threads gives the same bits; or
    the same error."""
    function = draw.pick(FUNCTIONS)
    family = function.family
    rows, classes = sizes(draw)
    if draw.chance(0.05):
        rows = 0
    lead, axis = shape_of(draw, rows, classes) if rows else ((0,), -1)
    dtype = np.dtype(draw.pick([F32, F64, F16, BF16]))
    wide = np.dtype(F32) if dtype.itemsize == 2 else dtype
    given: list[np.ndarray] = []
    options: dict[str, Any] = {}
    for name in family.names:
        if name == "targets" and family.has_labels:
            found = draw.rng.integers(classes, size=rows)
            given.append(found.reshape(lead))
        else:
            main = name in ("logits", "x", "y")
            a = any_bits(draw, (rows, classes), dtype if main else draw.pick([wide, F64, F16]))
            if name.startswith("target") and draw.chance(0.7):
                a = draw.rng.random((rows, classes)).astype(wide)
            given.append(in_shape(a, lead, axis))
    shape = given[-1].shape if family.names[-1] != "targets" or not family.has_labels else given[0].shape
    options = options_of(draw, function.options, lead, lead if family.by_row else shape, classes, wide) | {"axis": axis}
    for name in ("weight", "pos_weight", "sample_weight"):
        if name in options and draw.chance(0.5):
            options[name] = np.abs(np.nan_to_num(any_bits(draw, options[name].shape, wide)))
    if isinstance(options.get("upstream"), np.ndarray) and draw.chance(0.5):
        options["upstream"] = any_bits(draw, options["upstream"].shape, F64)
    elif "upstream" in options and draw.chance(0.5):
        options["upstream"] = draw.pick([np.nan, np.inf, -np.inf, 1e308, 5e-324])
    for name, values in {"z_loss": [1e308, 5e-324], "normalizer": [5e-324, 1e308], "softcap": [1e-15, 1e15]}.items():
        if name in options and draw.chance(0.5):
            options[name] = draw.pick(values)
    given = [laid(draw, a, n) if rows else a for n, a in zip(family.names, given, strict=True)]
    draw.note(function=function.id, arrays=[short(a) for a in given], options={k: short(v) for k, v in options.items()})
    before = [a.tobytes() for a in given]
    results = []
    for threads in (1, 2, 3):
        try:
            got = called(function, *given, num_threads=threads, **options)
            results.append({name: bits(value) for name, value in got.items()})
        except (ValueError, IndexError) as error:
            results.append(str(error))
    assert results[0] == results[1] == results[2], "another number of threads"
    assert before == [a.tobytes() for a in given], "an argument was modified"


def fuzz_errors(draw: Draw) -> None:
    hostile.check_one(draw, called)


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    name: str
    run: Callable[[Draw], None]
    functions: frozenset[str]
    share: float  # of the cases


def _kinds() -> Iterator[Kind]:
    nothing: frozenset[str] = frozenset()
    for family in FAMILIES:
        names = frozenset(f.name for f in family.functions)
        names |= {"CrossEntropyLoss"} if family in ONE_TERM else frozenset()
        yield Kind(
            family.name, lambda draw, family=family: fuzz_family(draw, family), names, 3 if family in ONE_TERM else 1
        )  # type: ignore[misc]
    yield Kind("large", fuzz_large, nothing, 0.25)
    yield Kind("predict", fuzz_predict, frozenset(["predict"]), 0.5)
    yield Kind("one_hot", fuzz_one_hot, frozenset(["one_hot"]), 0.3)
    yield Kind("evaluate", fuzz_evaluate, frozenset(["evaluate"]), 1)
    yield Kind("linear", fuzz_linear, frozenset(["linear_cross_entropy", "linear_cross_entropy_with_grad"]), 1)
    of_blocks = frozenset(["block_stats", "merge_stats", "loss_from_stats", "grad_from_stats"])
    yield Kind("blocks", fuzz_blocks, of_blocks, 1)
    yield Kind("reference", fuzz_reference, nothing, 1)
    yield Kind("bits", fuzz_bits, nothing, 2)
    yield Kind("errors", fuzz_errors, nothing, 6)


KINDS = {kind.name: kind for kind in _kinds()}


def kinds_of(only: str | None) -> list[Kind]:
    """Those whose name, or a function of theirs, contains the text."""
    chosen = [k for k in KINDS.values() if not only or only in k.name or any(only in name for name in k.functions)]
    if not chosen:
        raise SystemExit(f"--only {only}: no kind or function is called that. Kinds: {', '.join(KINDS)}")
    return chosen


def failure_of(case: str) -> str | None:
    """What is wrong in a case, or None."""
    kind, _, number = case.partition(":")
    draw = Draw(kind, int(number))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            KINDS[kind].run(draw)
    except Exception as error:
        isa = fastce.show_config(mode="dicts")["isa"]
        said = "\n".join(f"    {name}: {value}" for name, value in draw.said.items())
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error}".strip()
        return (
            f"{case}, {isa}: {text}\n    at {Path(where.filename).name}:{where.lineno}\n{said}\n"
            f"    FASTCE_ISA={isa} python tests/fuzz.py --case {case}"
        )
    return None


def work(seconds: float, seed: int, only: str | None, current: Path, most: int = 5) -> int:
    """Cases until the time is over, or so many have failed. Prints these."""
    rng = np.random.default_rng(seed)
    chosen = kinds_of(only)
    shares = np.array([kind.share for kind in chosen])
    count, failed, end = 0, 0, time.monotonic() + seconds
    with current.open("w") as file:
        while time.monotonic() < end and failed < most:
            kind = chosen[int(rng.choice(len(chosen), p=shares / shares.sum()))]
            case = f"{kind.name}:{int(rng.integers(2**31))}"
            file.seek(0)
            file.write(case.ljust(64))
            file.flush()
            if failure := failure_of(case):
                print(failure, flush=True)
                failed += 1
            count += 1
    print(f"{count} cases on {fastce.show_config(mode='dicts')['isa']}, {failed} failed", flush=True)
    return failed


def fuzz(isa: str, seconds: float, seed: int, only: str | None = None) -> str:
    """Run a worker on that instruction set. Returns what it printed if a case failed or ended it, else nothing."""
    with tempfile.TemporaryDirectory() as folder:
        current = Path(folder, "case")
        command = [sys.executable, "-X", "faulthandler", __file__, "--work", str(current)]
        command += ["--seconds", str(seconds), "--seed", str(seed)] + (["--only", only] if only else [])
        try:
            done = subprocess.run(
                command, env=os.environ | {"FASTCE_ISA": isa}, capture_output=True, text=True, timeout=seconds + 120,
            )  # fmt: skip
            code, text = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired as late:
            code, text = -1, f"did not end in time: {late.stdout!r}"
        last = current.read_text().strip() if current.exists() else "before the first case"
    if code in (0, 1):
        if not code:
            print(text.strip())
        return text if code else ""
    return f"{text}\nthe process of {isa} ended with {code} at\n    FASTCE_ISA={isa} python tests/fuzz.py --case {last}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the public API of fastce on every instruction set.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, help="of the cases; drawn and printed if it is not given")
    parser.add_argument("--only", help="kinds of calls, or functions, whose names contain this")
    parser.add_argument("--isa", action="append", choices=ISAS, help="default: all that are available")
    parser.add_argument("--case", help="one case alone, as a failure names it")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        failure = failure_of(given.case)
        print(failure or f"{given.case}: nothing is wrong")
        return bool(failure)
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if given.seed is None else given.seed
    if given.work:
        return bool(work(given.seconds, seed, given.only, given.work))
    kinds_of(given.only)
    print(f"seed {seed}", flush=True)
    isas, wrong = given.isa or ISAS, False
    for k, isa in enumerate(isas):
        failures = fuzz(isa, given.seconds / len(isas), seed + k, given.only)
        print(failures.rstrip(), flush=True)
        wrong = wrong or bool(failures)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
