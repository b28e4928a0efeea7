"""The graphs of dask.py. Nothing is computed here: arguments are checked by calls of fastce with arrays of no rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from dask.layers import ArrayBlockwiseDep

from .. import _checks, cross_entropy_with_grad
from . import _dask_tasks as tasks

SUM, STATE, WHOLE_WEIGHT = -1, -2, -3  # axes of arrays beside those of the logits, which are 0, 1, ...


class Starts(ArrayBlockwiseDep):  # type: ignore[misc]
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
        self.state_axes = (*self.axes, STATE)
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

    def per_block(self, task: Callable[..., Any], name: str, *arrays: Any, **options: Any) -> Any:
        """Two numbers for each block of rows, of which `sum` makes one."""
        more = {"new_axes": {SUM: 2}, "adjust_chunks": dict.fromkeys(self.rows, 1)}
        return self.blockwise(task, name, np.float64, (*self.rows, SUM), *arrays, **more, **options)

    def sum(self, sums: Any, dtype: Any, name: str) -> Any:
        """One number, from two for each block of rows."""
        return da.reduction(
            sums,
            chunk=tasks.same,
            combine=tasks.sum_of_sums,
            aggregate=functools.partial(tasks.total, result=np.dtype(dtype)),
            name=f"fastce-{name}",
            dtype=dtype,
            concatenate=True,
            meta=np.empty((), dtype),
        )

    def states(self, *targets_and_weight: Any, temperature: float, **options: Any) -> Any:
        """The merged states of all rows: one class, whose numbers are on a new last axis."""
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
        return da.reduction(
            states,
            chunk=tasks.same,
            combine=merge,
            aggregate=merge,
            axis=self.axis,
            keepdims=True,
            name="fastce-state",
            dtype=np.float64,
            concatenate=True,
            meta=np.empty((0,) * len(axes)),
        )

    def argmax(self) -> Any:
        """The first index of the maximum, of classes in several chunks."""
        return da.argmax(self.x, axis=self.axis)

    def of_whole_rows(self) -> Logits:
        """The same with the classes in one chunk. Chunks do not become larger, so they have fewer rows."""
        if self.whole:
            return self
        size = max(int(np.prod([max(sizes) for sizes in self.x.chunks if known(sizes)])), 1) * self.x.dtype.itemsize
        chunks = {k: "auto" if k != self.axis and known(self.x.chunks[k]) else None for k in self.axes}
        chunks[self.axis] = -1
        x = self.x.rechunk(chunks, block_size_limit=size)
        return Logits("logits", x, self.axis)

    def sum_of_evaluations(self, parts: Any) -> Any:
        """The sum of blocks that hold an evaluation each, as a Delayed."""
        if self.rows:
            parts = da.reduction(
                parts,
                chunk=tasks.same,
                combine=tasks.sum_of_evaluations,
                aggregate=tasks.sum_of_evaluations,
                name="fastce-evaluation",
                dtype=object,
                concatenate=False,
                meta=np.empty((), object),
            )
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
        return da.from_array(value, chunks=chunks, name=False if value.dtype.hasobject else None)
    wanted = tuple(
        theirs if known(theirs) and known(mine) else mine for mine, theirs in zip(value.chunks, chunks, strict=True)
    )
    if any(len(mine) != len(theirs) for mine, theirs in zip(wanted, chunks, strict=True)):
        raise ValueError(
            f"{name} is in {value.numblocks} chunks and logits in {tuple(map(len, chunks))} along the same axes, and "
            f"some of their sizes are unknown: compute_chunk_sizes() finds them"
        )
    return value.rechunk(wanted) if wanted != value.chunks and all(map(known, value.chunks)) else _partly(value, wanted)


def _partly(value: Any, wanted: tuple[Any, ...]) -> Any:
    changed = {k: new for k, (old, new) in enumerate(zip(value.chunks, wanted, strict=True)) if new is not old}
    return value.rechunk(changed) if any(changed[k] != value.chunks[k] for k in changed) else value


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
        self.sample_weight = self.upstream = None
        if options["sample_weight"] is not None:
            expected = f"{rows}: one for each row"
            self.sample_weight = along("sample_weight", options["sample_weight"], at.row_chunks, expected)
        self.upstream = options.pop("upstream", 1.0)
        lazy = isinstance(self.upstream, da.Array)
        by_row = options["reduction"] == "none" and (self.upstream.ndim if lazy else np.ndim(self.upstream)) > 0
        if by_row:
            self.upstream = along("upstream", self.upstream, at.row_chunks, f"a scalar or {rows}")
        elif lazy:
            self.upstream = along("upstream", self.upstream, (), "a scalar")
        self.upstream_axes = at.rows if by_row else () if lazy else None
        weight = options["weight"]
        self.weight = None
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

    def denominator(self) -> Any:
        """What a mean divides by: a number, or a dask array of no dimensions where it depends on what arrays hold."""
        at, labels = self.at, self.labels
        if self.reduction != "mean":
            return None
        if self.normalizer is not None:
            return float(self.normalizer)
        if labels is not None and self.options["ignore_index"] is None and self.weight is None:
            labels = None
        if labels is None and self.sample_weight is None:
            if all(map(known, at.row_chunks)):
                return float(np.prod(at.row_shape))
            if self.labels is None:
                one = self.targets.blocks[tuple(0 if k == at.axis else slice(None) for k in at.axes)]
                sums = at.per_block(tasks.counts, "fastce-count", one, at.axes, axis=at.axis, ndim=len(at.rows))
                return at.sum(sums, np.float64, "denominator")
            labels = self.labels
        weight = None if self.weight is None else self.weight.rechunk(-1)
        sums = at.per_block(
            tasks.shares,
            "share",
            at.places,
            at.rows,
            labels,
            None if labels is None else at.rows,
            self.sample_weight,
            None if self.sample_weight is None else at.rows,
            weight,
            None if weight is None else (WHOLE_WEIGHT,),
            num_classes=at.classes,
            ignore_index=self.options["ignore_index"],
            ndim=len(at.rows),
        )
        return at.sum(sums, np.float64, "denominator")

    def arrays(self, *names: str) -> list[Any]:
        """Arrays and the names of their axes, in pairs, as `blockwise` takes them."""
        at = self.at
        pairs = {
            "x": (at.x, at.axes),
            "targets": (self.targets, self.target_axes),
            "labels": (self.labels, at.rows),
            "sample_weight": (self.sample_weight, at.rows),
            "weight": (self.weight, (at.axis,)),
            "upstream": (self.upstream, self.upstream_axes),
        }
        return [part for name in names for part in (pairs[name] if pairs[name][0] is not None else (None, None))]

    def _of_states(self) -> tuple[Any, Any]:
        """The merged states of the rows, and their losses or sums."""
        at, options = self.at, self.options
        of_block = {name: options[name] for name in ("temperature", "softcap", "num_threads", "label_smoothing")}
        of_block["ignore_index"] = options["ignore_index"]
        states = at.states(*self.arrays("targets", "weight"), **of_block)
        arrays = [at.places, at.rows, states, at.state_axes, *self.arrays("labels", "sample_weight")]
        more = {name: options[name] for name in ("z_loss", "temperature", "ignore_index")}
        more |= {"axis": at.axis, "num_classes": at.classes, "reduction": self.reduction, "result": self.loss_dtype}
        return states, self._reduced(tasks.loss_of_states, *arrays, **more)

    def _reduced(self, task: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
        """The losses of rows, or sums of blocks."""
        at = self.at
        if self.reduction == "none":
            return at.blockwise(task, "loss", self.loss_dtype, at.rows, *arrays, **options)
        return at.per_block(task, "loss", *arrays, **options)

    def _finished(self, losses: Any, denominator: Any) -> Any:
        """The loss that is returned; the denominator is None if the losses contain it."""
        at, dtype = self.at, self.loss_dtype
        if self.reduction == "none":
            return losses
        if denominator is None:
            return at.sum(losses, dtype, "loss")
        total = at.sum(losses, np.float64, "loss-sum")
        return at.blockwise(tasks.quotient, "loss", dtype, (), total, (), *_number(denominator), result=dtype)

    def loss(self) -> Any:
        at, denominator = self.at, self.denominator()
        if not at.whole:
            return self._finished(self._of_states()[1], denominator)
        arrays = [at.places, at.rows, *self.arrays("x", "targets", "sample_weight", "weight")]
        reduction = "none" if self.reduction == "none" else "sum"
        losses = self._reduced(tasks.loss, *arrays, axis=at.axis, reduction=reduction, **self.options)
        return self._finished(losses, denominator)

    def loss_and_grad(self) -> tuple[Any, Any]:
        at, denominator = self.at, self.denominator()
        more = {"axis": at.axis, "reduction": self.reduction, "subnormals": self.subnormals, **self.options}
        of_call = [*_number(denominator), self.upstream, self.upstream_axes]
        if not at.whole:
            states, losses = self._of_states()
            arrays = [at.places, at.rows, at.starts, at.axes, *self.arrays("x", "targets", "weight")]
            arrays += [states, at.state_axes]
            arrays += [*self.arrays("sample_weight"), *of_call]
            more["num_classes"] = at.classes
            grad = at.blockwise(tasks.grad_of_states, "grad", self.grad_dtype, at.axes, *arrays, **more)
            return self._finished(losses, denominator), grad
        arrays = [at.places, at.rows, *self.arrays("x", "targets", "sample_weight", "weight"), *of_call]
        pairs = at.blockwise(tasks.loss_and_grad, "cross-entropy-with-grad", self.grad_dtype, at.axes, *arrays, **more)
        grad = at.blockwise(tasks.second, "grad", self.grad_dtype, at.axes, pairs, at.axes)
        return self._finished(self._reduced(tasks.first, pairs, at.axes), None), grad


def _number(value: Any) -> tuple[Any, Any]:
    return value, (() if isinstance(value, da.Array) else None)
