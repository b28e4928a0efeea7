"""fastce as a function of JAX, on the CPU: `cross_entropy` under `jax.jit`, `jax.grad` and `jax.vmap`.

XLA calls fastce with its own memory, nothing is copied. Between forward and backward two numbers a row are kept
(`fastce.SoftmaxStats`), not a gradient. The two calls cost about 0.1 ms more than a function that XLA compiles, so it
pays for large vocabularies. JAX 0.5 or later is needed.
"""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from .. import SoftmaxStats, cross_entropy_grad
from .. import cross_entropy as numpy_cross_entropy
from ._jax_ffi import register

__all__ = ["cross_entropy"]

TARGET = __name__.rpartition(".integrations.")[0].replace(".", "_") + "_cross_entropy"
ARRAYS = "weight", "sample_weight"  # options that are arrays, and may be traced


def cross_entropy(logits: Any, targets: Any, **options: Any) -> jax.Array:
    """`fastce.cross_entropy` of JAX arrays, differentiable (once, in reverse mode) with respect to the logits.

    Parameters
    ----------
    logits : array_like
        As in `fastce.cross_entropy`. JAX makes it an array first: of float32, unless 64-bit types are enabled.
    targets : array_like
        As in `fastce.cross_entropy`.
    **options
        Those of `fastce.cross_entropy`, but for `return_stats`. `weight` and `sample_weight` may be traced. The other
        options are part of the compiled program.

    Returns
    -------
    loss : jax.Array
        In the dtype of the logits; of the rows' shape for ``reduction="none"``, else without axes.

    Raises
    ------
    TypeError, ValueError
        As in `fastce.cross_entropy`, for what is known without the arrays' values; an option is traced that may not be;
        JAX differentiates with respect to something that is not the logits.
    ValueError, jax.errors.JaxRuntimeError
        When it is computed: the other errors of `fastce.cross_entropy`, such as a class index out of range. JAX
        chooses the type; the text contains that of the error.

    Notes
    -----
    `jax.vmap` adds an axis of rows, so a batch is one call. Only if each member of it has a `weight` of its own, there
    is one call for each. The vector-Jacobian product is `fastce.cross_entropy_grad`. See "Custom derivative rules" and
    "Foreign function interface" in JAX's documentation.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from fastce.integrations.jax import cross_entropy
    >>> x, labels = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1])
    >>> loss = lambda w: cross_entropy(x @ w, labels)
    >>> print(jax.jit(jax.grad(loss))(jnp.zeros((2, 2))))
    [[-0.25  0.25]
     [ 0.25 -0.25]]
    """
    if "return_stats" in options:
        raise TypeError("return_stats is not an option here: the loss alone can be differentiated")
    arrays = {name: jnp.asarray(options.pop(name)) for name in ARRAYS if options.get(name) is not None}
    static = {name: _static(name, value) for name, value in options.items() if name not in ARRAYS}
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        logits = logits.astype(float)
    if logits.dtype not in (np.float32, np.float64):
        raise TypeError(f"logits has dtype {logits.dtype}, expected float32 or float64; cast it")
    axis = static.pop("axis", -1)
    shape = logits.shape
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis is {axis}, out of range for {len(shape)} dimensions")
    axis %= len(shape)
    # What is wrong with an option is said where it is traced. The result is not used.
    numpy_cross_entropy(np.zeros((1, shape[axis]), logits.dtype), [0], **static)
    if targets.shape not in (shape, shape[:axis] + shape[axis + 1 :]):
        raise ValueError(
            f"targets has shape {targets.shape}, expected {shape[:axis] + shape[axis + 1 :]} (class indices) or "
            f"{shape} (probabilities) for logits of shape {shape} with classes on axis {axis}"
        )
    text = json.dumps({"axis": axis, "ndim": len(shape), "arrays": list(arrays), "options": static})
    return _cross_entropy(text, logits, targets, tuple(arrays.values()))


def _static(name: str, value: Any) -> Any:
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} is traced by JAX, but it is part of the compiled program: make it a static argument")
    return value.item() if isinstance(value, (np.generic, np.ndarray, jax.Array)) else value


# --- what JAX sees ----------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(text: str, logits: jax.Array, targets: jax.Array, arrays: tuple[jax.Array, ...]) -> jax.Array:
    return _loss_and_stats(text, logits, targets, arrays)[0]


def _loss_and_stats(text: str, logits: jax.Array, targets: jax.Array, arrays: tuple[jax.Array, ...]) -> Any:
    call = _parsed(text)
    rows = logits.shape[: call["axis"]] + logits.shape[call["axis"] + 1 :]
    dtype = np.float64 if logits.dtype == np.float64 else np.float32  # what is computed in
    of_rows = jax.ShapeDtypeStruct(rows, dtype)
    loss = of_rows if call["options"].get("reduction") == "none" else jax.ShapeDtypeStruct((), dtype)
    forward = jax.ffi.ffi_call(TARGET, (loss, of_rows, of_rows), vmap_method="expand_dims")
    return forward(logits, targets, *arrays, options=text)


def _fwd(text: str, logits: Any, targets: Any, arrays: Any) -> Any:
    for name, value in [("targets", targets), *zip(_parsed(text)["arrays"], arrays, strict=True)]:
        if value.perturbed:
            raise TypeError(
                f"{name} is differentiated by JAX, but the gradient is that of the logits alone; "
                f"pass jax.lax.stop_gradient({name})"
            )
    logits, targets, arrays = logits.value, targets.value, tuple(array.value for array in arrays)
    loss, row_max, tail = _loss_and_stats(text, logits, targets, arrays)
    return loss, (logits, targets, arrays, row_max, tail)


def _bwd(text: str, saved: Any, upstream: Any) -> Any:
    logits, targets, arrays, row_max, tail = saved
    if isinstance(upstream, SymbolicZero):
        return jnp.zeros_like(logits), None, None
    grad = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
    backward = jax.ffi.ffi_call(TARGET + "_grad", grad, vmap_method="expand_dims")
    return backward(logits, targets, *arrays, row_max, tail, upstream, options=text), None, None


_cross_entropy.defvjp(_fwd, _bwd, symbolic_zeros=True)


# --- what XLA calls ---------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return json.loads(text)


class _Call:
    """One call: a loss, or as many as `jax.vmap` makes a batch of.

    Each array has a leading axis for each vmap, of length 1 where it is not mapped. A batch is computed as more rows,
    with ``reduction="none"``. Then each loss and each upstream is scaled here.
    """

    def __init__(self, arrays: list[Any], text: str) -> None:
        call = _parsed(text)
        self.mapped = mapped = arrays[0].ndim - call["ndim"]
        self.options = call["options"] | {"axis": call["axis"] + mapped}
        if mapped:
            self.batch = np.broadcast_shapes(*(array.shape[:mapped] for array in arrays))
            arrays = [np.broadcast_to(array, self.batch + array.shape[mapped:]) for array in arrays]
        self.logits, self.targets, *others = arrays
        for name in call["arrays"]:
            self.options[name] = others.pop(0)
        self.others = others
        self.scaled = mapped > 0 and self.options.get("reduction") != "none"
        if mapped and "weight" in self.options:
            self.options["weight"] = self.options["weight"][(0,) * mapped]
        if self.scaled:
            self.row_axes = tuple(range(mapped, self.logits.ndim - 1))
            self.divisor = 1.0 if self.options.get("reduction") == "sum" else self.options.pop("normalizer", None)
            self.options["reduction"] = "none"

    def denominator(self) -> Any:
        """What the sum of each member of the batch is divided by."""
        if self.divisor is not None:
            return np.full(self.batch, self.divisor)
        share: Any = np.ones(np.delete(self.logits.shape, self.options["axis"]))
        if self.targets.ndim < self.logits.ndim:
            kept = self.targets != self.options.get("ignore_index", -100)
            share = share * kept
            if "weight" in self.options:
                share *= self.options["weight"][np.where(kept, self.targets, 0)]
        share = share * self.options.get("sample_weight", 1.0)
        return share.sum(axis=self.row_axes, dtype=np.float64)


def _calls(arrays: list[Any], results: list[Any], text: str) -> Any:
    """Each call and the arrays that it writes: one, or one for each weight of a batch."""
    call = _parsed(text)
    mapped = arrays[0].ndim - call["ndim"]
    if not mapped or "weight" not in call["arrays"] or math.prod(arrays[2].shape[:mapped]) == 1:
        yield _Call(arrays, text), results
        return
    batch = results[0].shape[:mapped]
    arrays = [np.broadcast_to(array, batch + array.shape[mapped:]) for array in arrays]
    for at in np.ndindex(batch):
        yield _Call([array[at] for array in arrays], text), [result[*at, ...] for result in results]


def _forward(arrays: list[Any], results: list[Any], text: str) -> None:
    for call, (loss, row_max, tail) in _calls(arrays, results, text):
        found, stats = numpy_cross_entropy(call.logits, call.targets, **call.options, return_stats=True)
        row_max[...], tail[...] = stats
        if call.scaled:
            with np.errstate(invalid="ignore"):  # the mean of nothing is NaN
                found = found.sum(axis=call.row_axes, dtype=np.float64) / call.denominator()
        loss[...] = found


def _backward(arrays: list[Any], results: list[Any], text: str) -> None:
    for call, (grad,) in _calls(arrays, results, text):
        row_max, tail, upstream = call.others
        if call.scaled:
            denominator = call.denominator()
            upstream = np.divide(upstream, denominator, where=denominator != 0, out=np.zeros(call.batch))
            upstream = np.broadcast_to(np.expand_dims(upstream, call.row_axes), row_max.shape)
        stats = SoftmaxStats(row_max, tail)
        cross_entropy_grad(call.logits, call.targets, **call.options, upstream=upstream, stats=stats, out=grad)


register(TARGET, _forward)
register(TARGET + "_grad", _backward)
