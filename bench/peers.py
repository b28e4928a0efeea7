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
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch asks for huge pages too, as NumPy does by itself
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
    reuses: bool | None = None  # whether it writes to the problem's buffer or to a new array; None: it has no choice

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


def ways(problem: Problem, gradient: bool) -> list[bool | None]:
    """The values of `reuses` of an implementation that can write the gradient to a given array."""
    return [None] if not gradient else [True] if problem.case.in_place else [False, True]


def ours(module: Any, problem: Problem, gradient: bool, reuses: bool | None, **extra: Any) -> Callable[[], Any]:
    """The call of fastce or of its reference, which take the same arguments."""
    if not gradient:
        return partial(module.cross_entropy, problem.logits, problem.targets, **problem.options, **extra)
    if reuses:
        extra["out"] = problem.buffer
    logits = problem.buffer if problem.case.in_place else problem.logits
    return partial(module.cross_entropy_with_grad, logits, problem.targets, **problem.options, **extra)


def numpy_runs(problem: Problem, gradient: bool) -> Iterator[Run]:
    for reuses in ways(problem, gradient):
        yield Run("NumPy", 1, ours(reference, problem, gradient, reuses), as_numpy, reuses=reuses)


def fastce_runs(problem: Problem, gradient: bool, counts: Iterable[int] = THREADS) -> Iterator[Run]:
    for reuses in ways(problem, gradient):
        for threads in counts:
            call = ours(fastce, problem, gradient, reuses, num_threads=threads)
            yield Run("fastce", threads, call, as_numpy, reuses=reuses)


@cache
def pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def limit_runs(problem: Problem, gradient: bool, counts: Iterable[int] = THREADS) -> Iterator[Run]:
    """Lower bounds set by memory: for loss + gradient a copy, or a change of all signs if the case works in place; for
    forward a read, to find the maximum."""
    source = problem.logits.ravel(order="K")  # a view, because the logits of all cases are contiguous
    buffer = problem.buffer.ravel(order="K")
    name = "rewrite" if problem.case.in_place else "copy" if gradient else "read"
    work_on = {
        "read": lambda to, part: part.max,
        "copy": lambda to, part: partial(np.copyto, to, part),
        "rewrite": lambda to, part: partial(np.negative, to, to),
    }[name]

    def works(target: np.ndarray, threads: int) -> list[Callable[[], Any]]:
        parts = zip(np.array_split(target, threads), np.array_split(source, threads), strict=True)
        return [work_on(to, part) for to, part in parts]

    def copy_to_new(threads: int) -> None:
        _all(pool(threads), works(np.empty_like(source), threads))

    for reuses in ways(problem, gradient):
        for threads in counts:
            if reuses is False:
                call = source.copy if threads == 1 else partial(copy_to_new, threads)
            else:
                parts = works(buffer, threads)
                call = parts[0] if threads == 1 else partial(_all, pool(threads), parts)
            yield Run(name, threads, call, reuses=reuses)


def _all(executor: ThreadPoolExecutor, works: list[Callable[[], Any]]) -> None:
    for done in [executor.submit(work) for work in works]:
        done.result()


def torch_loss(problem: Problem) -> Callable[[Any, Any], Any] | None:
    """PyTorch's loss as a function of logits and targets, if it has the case."""
    import torch
    from torch.nn import functional as F

    if problem.case.axis not in (-1, 1) or problem.case.in_place:
        return None
    options: dict[str, Any] = {}
    with_z_loss = problem.case.options  # which PyTorch does not have, so its users write it themselves
    if problem.case.options:
        weight = torch.from_numpy(problem.options["weight"])
        options = {"weight": weight, "label_smoothing": LABEL_SMOOTHING, "ignore_index": IGNORE_INDEX}

    def loss_of(x: Any, targets: Any) -> Any:
        loss = F.cross_entropy(x, targets, **options)
        if with_z_loss:
            kept = targets != IGNORE_INDEX
            lse = torch.logsumexp(x, dim=-1)
            loss = loss + Z_LOSS * (lse.square() * kept).sum() / weight[targets * kept].mul(kept).sum()
        return loss

    return loss_of


def torch_runs(problem: Problem, gradient: bool) -> Iterator[Run]:
    import torch

    loss_of = torch_loss(problem)
    if loss_of is None:
        return
    logits, targets = torch.from_numpy(problem.logits), torch.from_numpy(problem.targets)

    def forward() -> Any:
        with torch.no_grad():
            return loss_of(logits, targets)

    def both() -> Any:
        x = logits.detach().requires_grad_()
        loss = loss_of(x, targets)
        loss.backward()
        return loss.detach(), x.grad.numpy()

    for threads in THREADS:
        yield Run("PyTorch", threads, both if gradient else forward, as_numpy, partial(torch.set_num_threads, threads))


def torch_compiled(loss_of: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Gradient and loss as one compiled function. It is compiled for each shape and number of threads at the first call
    with them, and raises an error where a part cannot be compiled. Functions that were compiled before are forgotten,
    because after a few shapes PyTorch would no longer compile."""
    import torch

    torch._dynamo.reset()
    return torch.compile(torch.func.grad_and_value(loss_of), dynamic=False, fullgraph=True)


def torch_compile_runs(problem: Problem, gradient: bool) -> Iterator[Run]:
    import torch

    loss_of = torch_loss(problem)
    if loss_of is None or not gradient:  # the forward alone is not compiled, to save time
        return
    compiled = torch_compiled(loss_of)
    logits, targets = torch.from_numpy(problem.logits), torch.from_numpy(problem.targets)

    def call() -> Any:
        grad, loss = compiled(logits, targets)
        return loss, grad.numpy()

    for threads in THREADS:  # `verify` is the first call, so nothing is compiled while it is timed
        yield Run("torch.compile", threads, call, as_numpy, partial(torch.set_num_threads, threads))


@cache
def torch_compile_error() -> str | None:
    """Why torch.compile does not work here: it needs a C++ compiler, for example."""
    import torch

    try:
        torch_compiled(torch.nn.functional.cross_entropy)(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    except Exception as error:  # there are many reasons, and each has its own class
        return f"torch.compile fails: {type(error).__name__}: {str(error).splitlines()[0]}"
    return None


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

    def call(threads: int, out: np.ndarray | None) -> Any:
        if not gradient:
            return loss.loss(**work, n_threads=threads).sum()
        losses, grad = loss.loss_gradient(**work, gradient_out=out, n_threads=threads)
        return losses.sum(), grad

    for reuses in ways(problem, gradient):
        for threads in THREADS:
            out = problem.buffer if reuses else None
            yield Run("scikit-learn", threads, partial(call, threads, out), as_numpy, reuses=reuses)


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

    def call(reuses: bool | None) -> Any:
        if not gradient:
            return forward(problem.logits, problem.targets)
        out = problem.buffer if reuses else np.empty_like(problem.logits)
        return both(problem.logits, problem.targets, out), out

    for reuses in ways(problem, gradient):
        for threads in THREADS:
            if threads <= numba.config.NUMBA_NUM_THREADS:
                enter = partial(numba.set_num_threads, threads)
                yield Run("Numba", threads, partial(call, reuses), as_numpy, enter, reuses)


# Name, required modules, and the function that yields its runs on a problem.
SIDES: list[tuple[str, tuple[str, ...], Callable[[Problem, bool], Iterator[Run]]]] = [
    ("NumPy", ("numpy",), numpy_runs),
    ("fastce", ("fastce",), fastce_runs),
    ("PyTorch", ("torch",), torch_runs),
    ("torch.compile", ("torch",), torch_compile_runs),
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


def absence(side: str) -> str | None:
    """Why an implementation is left out, or None."""
    packages = next(packages for name, packages, _ in SIDES if name == side)
    if package := missing(packages):
        return f"{package} is not installed"
    return torch_compile_error() if side == "torch.compile" else None


def left_out() -> str:
    """What is left out and why, as a sentence, or nothing."""
    reasons = [f"{name} ({reason})" for name, _, _ in SIDES if (reason := absence(name))]
    return f"Left out: {', '.join(reasons)}." if reasons else ""


def runs(problem: Problem, gradient: bool) -> list[Run]:
    """The runs of all implementations that work here, NumPy first and the memory limit last."""
    return [run for name, _, bind in SIDES if absence(name) is None for run in bind(problem, gradient)]


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
