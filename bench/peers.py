"""The implementations that are measured: fastce, its NumPy reference, the limit set by memory, and installed peers.

Each has a function that takes a problem and yields `Run` objects. A `Run` has a call without arguments, and a function
that reads the loss and the gradient from what the call returns. compare.py and the pytest benchmarks use this module.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
from cases import IGNORE_INDEX, LABEL_SMOOTHING, Z_LOSS, Problem

import fastce
from fastce import reference

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # must precede the import of JAX; keeps XLA from printing messages
THREADS = (1, max(2, fastce.show_config(mode="dicts")["threads"]))
OWN = 0  # in place of a number of threads: the implementation chooses
Result = tuple[float, np.ndarray | None]


@dataclass(frozen=True, eq=False)
class Run:
    """One implementation (`side`) on one problem. `enter` sets its number of threads; it is called before each turn."""

    side: str
    threads: int
    call: Callable[[], Any]
    read: Callable[[Any], Result] | None = None  # None: nothing to verify
    enter: Callable[[], object] = lambda: None

    @property
    def label(self) -> str:
        return self.side if self.threads == OWN else f"{self.side}, {self.threads} thread{'s' * (self.threads > 1)}"

    def verify(self, problem: Problem) -> None:
        if self.read is not None:
            self.enter()
            problem.restore()
            problem.check(self.label, *self.read(self.call()))


def as_numpy(result: Any) -> Result:
    loss, gradient = result if isinstance(result, tuple) else (result, None)
    return float(loss), gradient


def ours(module: Any, problem: Problem, gradient: bool, **extra: Any) -> Callable[[], Any]:
    """The call of fastce or of its reference, which take the same arguments."""
    if not gradient:
        return partial(module.cross_entropy, problem.logits, problem.targets, **problem.options, **extra)
    if problem.buffer is not None:
        extra["out"] = problem.buffer
    logits = problem.buffer if problem.case.in_place else problem.logits
    return partial(module.cross_entropy_with_grad, logits, problem.targets, **problem.options, **extra)


def numpy_runs(problem: Problem, gradient: bool) -> Iterator[Run]:
    yield Run("NumPy", 1, ours(reference, problem, gradient), as_numpy)


def fastce_runs(problem: Problem, gradient: bool, counts: Iterable[int] = THREADS) -> Iterator[Run]:
    for threads in counts:
        yield Run("fastce", threads, ours(fastce, problem, gradient, num_threads=threads), as_numpy)


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def limit_runs(problem: Problem, gradient: bool, counts: Iterable[int] = THREADS) -> Iterator[Run]:
    """Lower bounds set by memory: for loss + gradient a copy, or a change of all signs if the case works in place; for
    forward a read, to find the maximum."""
    source = problem.logits.ravel(order="K")  # a view, because the logits of all cases are contiguous
    target = problem.buffer.ravel(order="K") if problem.buffer is not None else np.ones_like(source)
    name = "rewrite" if problem.case.in_place else "copy" if gradient else "read"
    work_on = {
        "read": lambda to, part: part.max,
        "copy": lambda to, part: partial(np.copyto, to, part),
        "rewrite": lambda to, part: partial(np.negative, to, to),
    }[name]
    for threads in counts:
        parts = zip(np.array_split(target, threads), np.array_split(source, threads), strict=True)
        works = [work_on(to, part) for to, part in parts]
        yield Run(name, threads, works[0] if threads == 1 else partial(_all, pool(threads), works))


def _all(executor: ThreadPoolExecutor, works: list[Callable[[], Any]]) -> None:
    for done in [executor.submit(work) for work in works]:
        done.result()


def torch_runs(problem: Problem, gradient: bool) -> Iterator[Run]:
    import torch
    from torch.nn import functional as F

    if problem.case.axis not in (-1, 1) or problem.case.in_place:
        return
    logits, targets = torch.from_numpy(problem.logits), torch.from_numpy(problem.targets)
    options: dict[str, Any] = {}
    if problem.case.options:
        weight = torch.from_numpy(problem.options["weight"])
        options = {"weight": weight, "label_smoothing": LABEL_SMOOTHING, "ignore_index": IGNORE_INDEX}

    def loss_of(x: Any) -> Any:
        loss = F.cross_entropy(x, targets, **options)
        if problem.case.options:  # PyTorch has no z_loss, so its users write it themselves
            kept = targets != IGNORE_INDEX
            lse = torch.logsumexp(x, dim=-1)
            loss = loss + Z_LOSS * (lse.square() * kept).sum() / weight[targets * kept].mul(kept).sum()
        return loss

    def forward() -> Any:
        with torch.no_grad():
            return loss_of(logits)

    def both() -> Any:
        x = logits.detach().requires_grad_()
        loss = loss_of(x)
        loss.backward()
        return loss.detach(), x.grad.numpy()

    for threads in THREADS:
        yield Run("PyTorch", threads, both if gradient else forward, as_numpy, partial(torch.set_num_threads, threads))


@cache
def jax_compiled(probabilities: bool, axis: int, gradient: bool) -> Any:
    import jax
    import optax

    entropy = optax.softmax_cross_entropy if probabilities else optax.softmax_cross_entropy_with_integer_labels

    def loss_of(x: Any, targets: Any) -> Any:
        return entropy(x, targets, axis=axis).mean()

    return jax.jit(jax.value_and_grad(loss_of) if gradient else loss_of)


def jax_runs(problem: Problem, gradient: bool) -> Iterator[Run]:
    """JAX fixes its number of threads when the process starts. `taskset -c 0` gives all implementations one core."""
    import jax

    if problem.case.options or problem.case.order != "C" or problem.case.in_place:  # not supported
        return
    compiled = jax_compiled(problem.case.probabilities, problem.case.axis, gradient)
    with jax.enable_x64(problem.case.dtype == "float64"):
        logits, targets = jax.device_put(problem.logits), jax.device_put(problem.targets)

    def call() -> Any:
        return jax.block_until_ready(compiled(logits, targets))

    def call_x64() -> Any:
        with jax.enable_x64(True):
            return jax.block_until_ready(compiled(logits, targets))

    def read(result: Any) -> Result:
        loss, grad = result if gradient else (result, None)
        return float(loss), None if grad is None else np.asarray(grad)

    yield Run("JAX", OWN, call_x64 if problem.case.dtype == "float64" else call, read)


def sklearn_runs(problem: Problem, gradient: bool) -> Iterator[Run]:
    from sklearn._loss.loss import HalfMultinomialLoss

    if not problem.case.plain:
        return
    rows, classes = problem.case.shape
    loss = HalfMultinomialLoss(n_classes=classes)
    labels = problem.targets.astype(problem.case.dtype)  # which it takes as floats
    mean = np.full(rows, 1 / rows, problem.case.dtype)
    work = {"y_true": labels, "raw_prediction": problem.logits, "sample_weight": mean}
    if gradient and problem.buffer is not None:
        work["gradient_out"] = problem.buffer

    def call(threads: int) -> Any:
        if not gradient:
            return loss.loss(**work, n_threads=threads).sum()
        losses, grad = loss.loss_gradient(**work, n_threads=threads)
        return losses.sum(), grad

    for threads in THREADS:
        yield Run("scikit-learn", threads, partial(call, threads), as_numpy)


@cache
def numba_kernels() -> tuple[Any, Any]:
    import numba

    @numba.njit(parallel=True)
    def forward(logits: Any, targets: Any) -> Any:
        losses = np.empty(len(logits))
        for i in numba.prange(len(logits)):
            x = logits[i]
            row_max = x[0]
            for j in range(1, len(x)):
                row_max = max(row_max, x[j])
            total = 0.0
            for j in range(len(x)):
                total += np.exp(x[j] - row_max)
            losses[i] = np.log(total) + row_max - x[targets[i]]
        return losses.mean()

    @numba.njit(parallel=True)
    def both(logits: Any, targets: Any, out: Any) -> Any:
        losses = np.empty(len(logits))
        for i in numba.prange(len(logits)):
            x, grad = logits[i], out[i]
            row_max = x[0]
            for j in range(1, len(x)):
                row_max = max(row_max, x[j])
            total = 0.0
            for j in range(len(x)):
                grad[j] = np.exp(x[j] - row_max)
                total += grad[j]
            scale = x.dtype.type(1 / (total * len(logits)))
            for j in range(len(x)):
                grad[j] *= scale
            grad[targets[i]] -= x.dtype.type(1 / len(logits))
            losses[i] = np.log(total) + row_max - x[targets[i]]
        return losses.mean()

    return forward, both


def numba_runs(problem: Problem, gradient: bool) -> Iterator[Run]:
    import numba

    if not problem.case.plain:
        return
    forward, both = numba_kernels()

    def call() -> Any:
        if not gradient:
            return forward(problem.logits, problem.targets)
        out = problem.buffer if problem.buffer is not None else np.empty_like(problem.logits)
        return both(problem.logits, problem.targets, out), out

    for threads in THREADS:
        if threads <= numba.config.NUMBA_NUM_THREADS:
            yield Run("Numba", threads, call, as_numpy, partial(numba.set_num_threads, threads))


# Name, required modules, and the function that yields its runs on a problem.
SIDES: list[tuple[str, tuple[str, ...], Callable[[Problem, bool], Iterator[Run]]]] = [
    ("NumPy", ("numpy",), numpy_runs),
    ("fastce", ("fastce",), fastce_runs),
    ("PyTorch", ("torch",), torch_runs),
    ("JAX", ("jax", "optax"), jax_runs),
    ("scikit-learn", ("sklearn._loss.loss",), sklearn_runs),
    ("Numba", ("numba",), numba_runs),
    ("limit", ("numpy",), limit_runs),
]


@cache
def missing(packages: tuple[str, ...]) -> str | None:
    """The first of the packages that cannot be imported, or None."""
    for package in packages:
        try:
            import_module(package)
        except ImportError:
            return package
    return None


def installed() -> list[str]:
    return [name for name, packages, _ in SIDES if missing(packages) is None]


def runs(problem: Problem, gradient: bool) -> list[Run]:
    """The runs of all installed implementations, NumPy first and the memory limit last."""
    return [run for _, packages, bind in SIDES if missing(packages) is None for run in bind(problem, gradient)]


def cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """The machine and the versions behind the numbers."""
    config = fastce.show_config(mode="dicts")
    packages = ["numpy", "torch", "jax", "optax", "scikit-learn", "numba"]
    modules = {"scikit-learn": "sklearn"}
    found = {name: version(name) for name in packages if missing((modules.get(name, name),)) is None}
    return {
        "cpu": cpu_model(),
        "cpus": cpus(),
        "python": platform.python_version(),
        "fastce": config["version"],
        "isa": config["isa"],
        "openmp": config["openmp"],
        "compiler": config["compiler"],
        **found,
    }


def describe() -> str:
    """The environment, as two lines of text."""
    env = environment()
    names = {"numpy": "NumPy", "torch": "PyTorch", "jax": "JAX", "scikit-learn": "scikit-learn", "numba": "Numba"}
    versions = ", ".join(f"{title} {env[name]}" for name, title in names.items() if name in env)
    return (
        f"{env['cpu']}, {env['cpus']} CPUs; Python {env['python']}, {versions}.\n"
        f"fastce {env['fastce']}: kernels for {env['isa']}, OpenMP {env['openmp']}, {env['compiler']}."
    )
