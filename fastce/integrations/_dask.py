"""The graphs of dask.py. Nothing is computed here: arguments are checked by calls of fastce with arrays of no rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from dask.array.reductions import _tree_reduce
from dask.layers import ArrayBlockwiseDep

from .. import _checks, cross_entropy_with_grad
from . import _dask_tasks as tasks

SUM, STATE, WHOLE_WEIGHT = -1, -2, -3  # axes of arrays beside those of the logits, which are 0, 1, ...


class Starts(ArrayBlockwiseDep):
    """Where blocks begin: an index for each axis, None where it is not known."""

    def __init__(self, chunks: tuple[Any, ...], with_number: bool) -> None:
        super().__init__(chunks)
        self.starts = [np.cumsum((0, *sizes[:-1])).tolist() if known(sizes) else None for sizes in chunks]
        self.with_number = with_number

    def __getitem__(self, index: tuple[int, ...]) -> Any:
        starts = tuple(None if s is None else s[k] for s, k in zip(self.starts, index, strict=True))
        return (starts, index) if self.with_number else starts

    def __dask_tokenize__(self) -> Any:
        return "fastce-starts", self.starts, self.numblocks, self.with_number


def known(sizes: tuple[Any, ...]) -> bool:
    return not np.isnan(sizes).any()


def reduced(
    x: Any,
    combine: Callable[..., Any],
    finish: Callable[..., Any],
    name: str,
    axes: tuple[int, ...],
    keepdims: bool,
    meta: Any,
    concatenate: bool = True,
) -> Any:
    """A tree over blocks that are reduced already. `da.reduction` would have a first step for each block, too."""
    several = len(axes) > 1
    return _tree_reduce(
        x,
        finish,
        axes,
        keepdims,
        meta.dtype,
        split_every=dict.fromkeys(axes, max(2, int(16 ** (1 / (len(axes) - 1))))) if several else None,
        combine=combine,
        name=f"fastce-{name}",
        concatenate=concatenate,
    )


class Logits:
    """A dask array of logits, how its axes are named in graphs, and how calls are built on it."""

    def __init__(self, name: str, x: Any, axis: Any) -> None:
        self.x = as_dask(name, x)
        if not self.x.ndim:
            raise ValueError(f"{name} has shape (), expected one or more dimensions")
        self.axis = _checks.as_axis(axis, self.x.ndim)
        if not known(self.x.chunks[self.axis]):
            raise ValueError(
                f"{name} has chunks of unknown sizes along the classes, axis {self.axis}; "
                f"{name}.compute_chunk_sizes() finds them"
            )
        self.classes = self.x.shape[self.axis]
        self.whole = self.x.numblocks[self.axis] == 1  # rows are in one block each
        self.axes = tuple(range(self.x.ndim))
        self.rows = self.axes[: self.axis] + self.axes[self.axis + 1 :]
        self.state_axes = (STATE, *self.axes)
        self.row_chunks = tuple(self.x.chunks[k] for k in self.rows)
        self.row_shape = tuple(self.x.shape[k] for k in self.rows)
        self.starts = Starts(self.x.chunks, False)
        self.places = Starts(self.row_chunks, True)
        self.no_rows = tuple(self.classes if k == self.axis else 0 for k in self.axes)

    def empty(self) -> Any:
        """Logits of no rows, for what fastce checks and the dtypes that it returns."""
        return np.empty(self.no_rows, self.x.dtype)

    def blockwise(self, task: Callable[..., Any], name: str, dtype: Any, out: Any, *arrays: Any, **options: Any) -> Any:
        """An array with the axes `out` of blocks that a task computes. `arrays` are arrays and their axes in turn."""
        meta = np.empty((0,) * len(out), dtype)
        return da.blockwise(task, out, *arrays, align_arrays=False, token=f"fastce-{name}", meta=meta, **options)

    def per_block(self, task: Callable[..., Any], name: str, *arrays: Any, numbers: int = 2, **options: Any) -> Any:
        """Pairs of numbers for each block of rows, which `sum` adds."""
        more = {"new_axes": {SUM: numbers}, "adjust_chunks": dict.fromkeys(self.rows, 1)}
        return self.blockwise(task, name, np.float64, (*self.rows, SUM), *arrays, **more, **options)

    def sum(self, sums: Any, name: str, dtype: Any, denominator: float | None = 1.0) -> Any:
        """The total of all blocks, divided by the denominator. Without one, the second pairs add up to it."""
        finish = functools.partial(tasks.total, denominator=denominator, result=np.dtype(dtype))
        return reduced(sums, tasks.sum_of_sums, finish, name, tuple(range(sums.ndim)), False, np.empty((), dtype))

    def states(self, *targets_and_weight: Any, temperature: float, **options: Any) -> Any:
        """The merged states of all rows: one class, whose numbers are on a new first axis."""
        axes = self.state_axes
        states = self.blockwise(
            tasks.block_state,
            "state",
            np.float64,
            axes,
            self.starts,
            self.axes,
            self.x,
            self.axes,
            *(targets_and_weight or (None,) * 4),
            new_axes={STATE: tasks.STATE},
            adjust_chunks={self.axis: 1},
            axis=self.axis,
            temperature=temperature,
            num_classes=self.classes,
            **options,
        )
        merge = functools.partial(tasks.merged_states, class_axis=self.axis, temperature=temperature)
        meta = np.empty((0,) * len(axes))
        return reduced(states, merge, merge, "state", (self.axis + 1,), True, meta, concatenate=False)

    def argmax(self) -> Any:
        """The first index of the maximum, of classes in several chunks."""
        return da.argmax(self.x, axis=self.axis)

    def of_whole_rows(self) -> Logits:
        """The same with the classes in one chunk. Chunks do not become larger, so they have fewer rows."""
        if self.whole:
            return self
        size = max(int(np.prod([max(sizes) for sizes in self.x.chunks if known(sizes)])), 1) * self.x.dtype.itemsize
        chunks: dict[int, Any] = {k: "auto" if k != self.axis and known(self.x.chunks[k]) else None for k in self.axes}
        chunks[self.axis] = -1
        x = self.x.rechunk(chunks, block_size_limit=size)
        return Logits("logits", x, self.axis)

    def sum_of_evaluations(self, parts: Any) -> Any:
        """The sum of blocks that hold an evaluation each, as a Delayed."""
        if self.rows:
            add = tasks.sum_of_evaluations
            axes, meta = tuple(range(parts.ndim)), np.empty((), object)
            parts = reduced(parts, add, add, "evaluation", axes, False, meta, concatenate=False)
        return parts.to_delayed(optimize_graph=False).item()


def as_dask(name: str, value: Any) -> Any:
    if not isinstance(value, da.Array):
        raise TypeError(f"{name} is {type(value).__name__}, expected a dask array; for others there is fastce itself")
    if type(value._meta) is not np.ndarray:
        raise TypeError(f"{name} has blocks of {type(value._meta).__name__}, expected numpy.ndarray")
    return value


def along(name: str, value: Any, chunks: tuple[Any, ...], expected: str) -> Any:
    """An array as a dask array in those chunks, which may be of unknown sizes."""
    if not isinstance(value, da.Array):
        value = _checks.as_array(name, value)
        if not value.size and value.dtype == np.float64 and name in ("targets", "labels"):
            value = value.astype(np.int64)  # NumPy makes an empty list float64
    else:
        value = as_dask(name, value)
    shape = tuple(sum(sizes) for sizes in chunks)
    fits = len(value.shape) == len(shape)
    if not fits or any(n != m and n == n and m == m for n, m in zip(value.shape, shape, strict=True)):
        raise ValueError(f"{name} has shape {value.shape}, expected {expected}")
    if not isinstance(value, da.Array):
        if not all(map(known, chunks)):
            raise ValueError(
                f"{name} is not a dask array, but logits has chunks of unknown sizes along the rows: "
                f"logits.compute_chunk_sizes() finds them"
            )
        return da.from_array(value, chunks=chunks)
    wanted = tuple(
        theirs if known(theirs) and known(mine) else mine for mine, theirs in zip(value.chunks, chunks, strict=True)
    )
    if any(len(mine) != len(theirs) for mine, theirs in zip(wanted, chunks, strict=True)):
        raise ValueError(
            f"{name} is in {value.numblocks} chunks and logits in {tuple(map(len, chunks))} along the same axes, and "
            f"some of their sizes are unknown: compute_chunk_sizes() finds them"
        )
    other = {k: sizes for k, sizes in enumerate(wanted) if known(sizes) and sizes != value.chunks[k]}
    return value.rechunk(other) if other else value


class Loss:
    """A call of `cross_entropy`: what is checked while the graph is built, and its parts."""

    def __init__(self, logits: Any, targets: Any, options: dict[str, Any]) -> None:
        self.options = options = dict(options)
        for name in options.keys() - {"weight", "sample_weight", "upstream"}:
            if isinstance(options[name], da.Array):
                raise TypeError(f"{name} is a dask array, expected a value that is known")
        self.at = at = Logits("logits", logits, options.pop("axis"))
        x, rows = at.x, at.row_shape
        self.targets, self.target_axes = self._targets(targets)
        self.labels = self.targets if self.target_axes == at.rows else None
        self.sample_weight: Any = None
        if options["sample_weight"] is not None:
            expected = f"{rows}: one for each row"
            self.sample_weight = along("sample_weight", options["sample_weight"], at.row_chunks, expected)
        self.upstream: Any = options.pop("upstream", 1.0)
        lazy = isinstance(self.upstream, da.Array)
        by_row = options["reduction"] == "none" and (self.upstream.ndim if lazy else np.ndim(self.upstream)) > 0
        if by_row:
            self.upstream = along("upstream", self.upstream, at.row_chunks, f"a scalar or {rows}")
        elif lazy:
            self.upstream = along("upstream", self.upstream, (), "a scalar")
        self.upstream_axes = at.rows if by_row else () if lazy else None
        weight = options["weight"]
        self.weight: Any = None
        if weight is not None:
            expected = f"({at.classes},): one for each class"
            self.weight = along("weight", weight, (x.chunks[at.axis],), expected)
        self._check(weight)
        for name in ("weight", "sample_weight"):
            options.pop(name)
        self.reduction, self.normalizer = options.pop("reduction"), options.pop("normalizer")
        self.subnormals = options.pop("subnormals", "keep")

    def _targets(self, targets: Any) -> tuple[Any, Any]:
        at = self.at
        if not isinstance(targets, da.Array):
            targets = _checks.as_array("targets", targets)
        labels = f"{at.row_shape} (class indices) or {at.x.shape} (probabilities) for logits of shape {at.x.shape}"
        if targets.ndim == at.x.ndim:
            return along("targets", targets, at.x.chunks, labels), at.axes
        return along("targets", targets, at.row_chunks, labels), at.rows

    def _check(self, weight: Any) -> None:
        """Let fastce check the dtypes and options, and tell the dtypes of loss and gradient."""
        at, rows = self.at, (0,) * len(self.at.rows)
        shape = at.no_rows if self.labels is None else rows
        options = dict(self.options)
        options["weight"] = np.ones(at.classes, weight.dtype) if isinstance(weight, da.Array) else weight
        options["sample_weight"] = None if self.sample_weight is None else np.empty(rows, self.sample_weight.dtype)
        options["upstream"] = self.upstream
        if self.upstream_axes is not None:
            options["upstream"] = np.ones((0,) * self.upstream.ndim, self.upstream.dtype)
        targets = np.empty(shape, self.targets.dtype)
        loss, grad = cross_entropy_with_grad(at.empty(), targets, axis=at.axis, **options)
        self.loss_dtype, self.grad_dtype = loss.dtype, grad.dtype

    def denominator(self) -> float | None:
        """What the losses' sum is divided by, if it does not depend on what arrays hold."""
        at, labels = self.at, self.labels
        if self.reduction != "mean":
            return 1.0
        if self.normalizer is not None:
            return float(self.normalizer)
        all_count = self.sample_weight is None and (
            labels is None or (self.options["ignore_index"] is None and self.weight is None)
        )
        return float(np.prod(at.row_shape)) if all_count and all(map(known, at.row_chunks)) else None

    def lazy_denominator(self) -> Any:
        at = self.at
        if self.labels is None and self.sample_weight is None:  # the rows of the first classes' targets are counted
            first = self.targets.blocks[tuple(0 if k == at.axis else slice(None) for k in at.axes)]
            sums = at.per_block(tasks.counts, "count", first, at.axes, axis=at.axis)
        else:
            arrays = self.arrays("labels", "sample_weight", "whole_weight")
            classes, ignored = at.classes, self.options["ignore_index"]
            more = {"num_classes": classes, "ignore_index": ignored, "ndim": len(at.rows)}
            sums = at.per_block(tasks.shares, "denominator", at.places, at.rows, *arrays, **more)
        return at.sum(sums, "denominator", np.float64)

    def arrays(self, *names: str) -> list[Any]:
        """Arrays and the names of their axes, in pairs, as `blockwise` takes them."""
        at = self.at
        pairs = {
            "x": (at.x, at.axes),
            "targets": (self.targets, self.target_axes),
            "labels": (self.labels, at.rows),
            "sample_weight": (self.sample_weight, at.rows),
            "weight": (self.weight, (at.axis,)),
            "whole_weight": (None if self.weight is None else self.weight.rechunk(-1), (WHOLE_WEIGHT,)),
            "upstream": (self.upstream, self.upstream_axes),
        }
        return [part for name in names for part in (pairs[name] if pairs[name][0] is not None else (None, None))]

    def _states(self) -> Any:
        names = ("ignore_index", "label_smoothing", "temperature", "softcap", "num_threads")
        return self.at.states(*self.arrays("targets", "weight"), **{name: self.options[name] for name in names})

    def _loss(self, states: Any) -> Any:
        """From merged states, or from logits whose classes are in one block."""
        at, options, denominator = self.at, self.options, self.denominator()
        more: dict[str, Any] = {"axis": at.axis, "ignore_index": options["ignore_index"], "num_classes": at.classes}
        more |= {"reduction": "none" if self.reduction == "none" else "sum", "with_share": denominator is None}
        if states is None:
            task, arrays, more = tasks.loss, self.arrays("x", "targets", "sample_weight", "weight"), {**options, **more}
        else:
            task, arrays = tasks.loss_of_states, self.arrays("labels", "sample_weight", "whole_weight")
            arrays = [states, at.state_axes, *arrays]
            more |= {name: options[name] for name in ("z_loss", "temperature")} | {"result": self.loss_dtype}
        if self.reduction == "none":
            return at.blockwise(task, "loss", self.loss_dtype, at.rows, at.places, at.rows, *arrays, **more)
        numbers = 4 if denominator is None else 2
        sums = at.per_block(task, "loss", at.places, at.rows, *arrays, numbers=numbers, **more)
        return at.sum(sums, "loss", self.loss_dtype, denominator)

    def loss(self) -> Any:
        return self._loss(None if self.at.whole else self._states())

    def loss_and_grad(self) -> tuple[Any, Any]:
        at, denominator = self.at, self.denominator()
        more = {"axis": at.axis, "reduction": self.reduction, "subnormals": self.subnormals, **self.options}
        of_call = [*_number(self.lazy_denominator() if denominator is None else denominator)]
        of_call += [self.upstream, self.upstream_axes]
        if not at.whole:
            states = self._states()
            arrays = [at.places, at.rows, at.starts, at.axes, *self.arrays("x", "targets", "weight")]
            arrays += [states, at.state_axes, *self.arrays("sample_weight"), *of_call]
            more["num_classes"] = at.classes
            return self._loss(states), at.blockwise(
                tasks.grad_of_states, "grad", self.grad_dtype, at.axes, *arrays, **more
            )
        arrays = [at.places, at.rows, *self.arrays("x", "targets", "sample_weight", "weight"), *of_call]
        pairs = at.blockwise(tasks.loss_and_grad, "cross-entropy-with-grad", self.grad_dtype, at.axes, *arrays, **more)
        grad = at.blockwise(tasks.second, "grad", self.grad_dtype, at.axes, pairs, at.axes)
        if self.reduction == "none":
            return at.blockwise(tasks.first, "loss", self.loss_dtype, at.rows, pairs, at.axes), grad
        return at.sum(at.per_block(tasks.first, "loss", pairs, at.axes), "loss", self.loss_dtype), grad


def _number(value: Any) -> tuple[Any, Any]:
    return value, (() if isinstance(value, da.Array) else None)
