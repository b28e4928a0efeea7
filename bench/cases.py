"""The cases that are measured, their data, and the float64 results that each implementation must match before it is
timed. compare.py and the pytest benchmarks use this module. It imports neither fastce nor any peer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

BLOCK = 2**20  # logits in a block of the float64 computation
SMOKE_LOGITS = 10_000
LABEL_SMOOTHING, Z_LOSS, IGNORE_INDEX, IGNORED_SHARE = 0.1, 1e-4, -100, 0.1
# Some implementations add a million float32 losses or 128256 float32 exponentials one by one.
RTOL = {"float32": 1e-4, "float64": 1e-10}
ATOL = {"float32": 1e-6, "float64": 1e-12}  # relative to the largest element of the gradient


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    axis: int = -1
    order: str = "C"
    probabilities: bool = False  # targets are probabilities instead of int64 labels
    options: bool = False  # weight, label_smoothing, z_loss and ignored rows
    in_place: bool = False  # the gradient overwrites the logits

    @property
    def plain(self) -> bool:
        """Whether all peers can compute it: logits of shape (rows, classes), labels as targets, and no options."""
        return len(self.shape) == 2 and not (self.probabilities or self.options or self.in_place)

    @property
    def modes(self) -> list[bool]:
        """Whether a gradient is computed: with and without, or only with if it overwrites the logits."""
        return [True] if self.in_place else [True, False]

    def smoke(self) -> Case:
        """The same case with few rows, to check that the benchmark works."""
        axis = self.axis % len(self.shape)
        positions = max(1, SMOKE_LOGITS // self.shape[axis])
        side = max(1, int(positions ** (1 / (len(self.shape) - 1))))
        return replace(self, shape=tuple(n if i == axis else min(n, side) for i, n in enumerate(self.shape)))


CASES = [
    Case("32 x 10", (32, 10)),
    Case("65536 x 3", (65536, 3)),
    Case("65536 x 10", (65536, 10)),
    Case("20000 x 32", (20000, 32)),
    Case("20000 x 64", (20000, 64)),
    Case("20000 x 100", (20000, 100)),
    Case("128 x 1000", (128, 1000)),
    Case("4096 x 1000", (4096, 1000)),
    Case("4096 x 1000 float64", (4096, 1000), dtype="float64"),
    Case("1024 x 32000", (1024, 32000)),
    Case("512 x 128256", (512, 128256)),
    Case("1024 x 32000, in place", (1024, 32000), in_place=True),
    Case("512 x 128256, in place", (512, 128256), in_place=True),
    Case("4096 x 1000, all options", (4096, 1000), options=True),
    Case("4096 x 1000, probabilities", (4096, 1000), probabilities=True),
    Case("16 x 21 x 256 x 256, axis=1", (16, 21, 256, 256), axis=1),
    Case("65536 x 10 float64, Fortran order", (65536, 10), dtype="float64", order="F"),
]


@dataclass
class Problem:
    """A case with its data.

    `buffer` is an array for the gradient, whose memory was touched before. In a case that works in place, it also holds
    the logits. Then the first call finds the logits there, and each later call finds the gradient of the call before,
    which takes the same time.
    """

    case: Case
    logits: np.ndarray = field(init=False)
    targets: np.ndarray = field(init=False)
    options: dict[str, Any] = field(init=False)  # keyword arguments of fastce and fastce.reference
    buffer: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        case, rng = self.case, np.random.default_rng(0)
        classes = case.shape[case.axis]
        logits = 2 * rng.standard_normal(case.shape, dtype=case.dtype)
        self.logits = np.asarray(logits, order=case.order)
        self.options = {} if case.axis == -1 else {"axis": case.axis}
        if case.probabilities:
            e = np.exp(rng.standard_normal(case.shape, dtype=case.dtype))
            self.targets = e / e.sum(axis=case.axis, keepdims=True)
        else:
            shape = list(case.shape)
            del shape[case.axis]
            self.targets = rng.integers(classes, size=shape)
        if case.options:
            self.targets[rng.random(self.targets.shape) < IGNORED_SHARE] = IGNORE_INDEX
            self.options |= {
                "weight": rng.uniform(0.5, 2.0, classes).astype(case.dtype),
                "label_smoothing": LABEL_SMOOTHING,
                "z_loss": Z_LOSS,
                "ignore_index": IGNORE_INDEX,
            }
        self.buffer = self.logits.copy(order="K")

    @cached_property
    def truth(self) -> tuple[float, np.ndarray]:
        """Loss and gradient, computed from the definition in float64, one block of rows at a time."""
        axis, classes = self.case.axis, self.case.shape[self.case.axis]
        eps, z_loss = self.options.get("label_smoothing", 0.0), self.options.get("z_loss", 0.0)
        weight = np.asarray(self.options.get("weight", np.ones(classes)), dtype=np.float64)
        moved = np.moveaxis(self.logits, axis, -1)
        rows = moved.reshape(-1, classes)
        targets = np.moveaxis(self.targets, axis, -1) if self.case.probabilities else self.targets
        targets = targets.reshape(len(rows), -1)
        gradient = np.empty(rows.shape, self.logits.dtype)
        total = denominator = 0.0
        step = max(1, BLOCK // classes)
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            x, t = rows[block].astype(np.float64), targets[block]
            lse = np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
            lse += x.max(axis=1, keepdims=True)
            if self.case.probabilities:
                kept, c, mass = np.ones((len(x), 1)), t.astype(np.float64), np.ones(len(x))
            else:
                kept = (t != IGNORE_INDEX).astype(np.float64)
                label = np.where(kept == 1, t, 0)
                c = (np.arange(classes) == label).astype(np.float64)
                mass = (weight[label] * kept)[:, 0]
            q = weight * ((1 - eps) * c + eps / classes)
            total += float((kept * (q * (lse - x)).sum(axis=1, keepdims=True) + kept * z_loss * lse**2).sum())
            denominator += float(mass.sum())
            gradient[block] = kept * ((q.sum(axis=1, keepdims=True) + 2 * z_loss * lse) * np.exp(x - lse) - q)
        gradient /= denominator
        return total / denominator, np.moveaxis(gradient.reshape(moved.shape), -1, axis)

    def check(self, side: str, loss: float, gradient: np.ndarray | None) -> None:
        """Raise an error if the results of an implementation (`side`) are wrong."""
        rtol, atol = RTOL[self.case.dtype], ATOL[self.case.dtype]
        true_loss, true_gradient = self.truth
        if not abs(loss - true_loss) <= rtol * abs(true_loss):
            raise ArithmeticError(f"{side}, {self.case.name}: the loss is {loss}, expected {true_loss}")
        if gradient is None:
            return
        if gradient.shape != true_gradient.shape or gradient.dtype != true_gradient.dtype:
            raise ArithmeticError(f"{side}, {self.case.name}: the gradient is {gradient.dtype} {gradient.shape}")
        largest = max(abs(float(true_gradient.min())), abs(float(true_gradient.max())))
        step = max(1, BLOCK * len(gradient) // gradient.size)
        for start in range(0, len(gradient), step):
            mine, true = gradient[start : start + step], true_gradient[start : start + step]
            if not (np.abs(mine - true) <= rtol * np.abs(true) + atol * largest).all():
                raise ArithmeticError(f"{side}, {self.case.name}: the gradient is off by {np.abs(mine - true).max()}")

    def restore(self) -> None:
        """Put the logits back if the case works in place, where the last gradient has overwritten them."""
        if self.case.in_place:
            np.copyto(self.buffer, self.logits)

    @property
    def size(self) -> int:
        return self.logits.size

    def moved_bytes(self, gradient: bool) -> int:
        """The least number of bytes to read and write: the logits, and the gradient if there is one."""
        return self.logits.nbytes * (2 if gradient else 1)
