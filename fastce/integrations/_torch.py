"""fastce's operators for PyTorch, registered with `torch.library`, and the function that calls them: used by torch.py
and _torch_functional.py.

The schemas are made from the signature of `fastce.cross_entropy`, so an option that it gets is an option here too. The
operators' namespace is the name of this package, so that two copies of fastce can be imported into one process.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from .. import SoftmaxStats, cross_entropy_grad
from .. import cross_entropy as numpy_cross_entropy

TYPES = {  # in schemas, by annotation
    "Any": "Tensor?",
    "float": "float",
    "float | None": "float?",
    "int": "int",
    "int | None": "int?",
    "str": "str",
}
PARAMETERS = [
    p
    for p in inspect.signature(numpy_cross_entropy).parameters.values()
    if p.kind is p.KEYWORD_ONLY and p.name != "return_stats"
]
DEFAULTS = {p.name: p.default for p in PARAMETERS}
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TENSORS = [p.name for p in PARAMETERS if TYPES[p.annotation] == "Tensor?"]  # options that are tensors
_TENSORS_AT = [list(DEFAULTS).index(name) for name in TENSORS]


def _bfloat16() -> Any:
    """NumPy's bfloat16, which is that of another package."""
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError("tensors of bfloat16 need the package ml_dtypes; install it, or cast them") from None
    return ml_dtypes.bfloat16


def _array(tensor: torch.Tensor) -> Any:
    """A tensor's memory as an array."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(_bfloat16())
    return tensor.numpy()


def _tensor(array: Any) -> torch.Tensor:
    """An array's memory as a tensor."""
    is_bfloat16 = array.dtype.name == "bfloat16"
    tensor: torch.Tensor = torch.from_numpy(array.view(np.int16) if is_bfloat16 else array)
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor


def _of_rows(array: Any) -> torch.Tensor:
    """A result with a number for each row, or one number, in C order."""
    return _tensor(np.asarray(array, order="C"))


def _computed(logits: torch.Tensor) -> Any:
    """The dtype of the losses."""
    return torch.float64 if logits.dtype == torch.float64 or not logits.is_floating_point() else torch.float32


def _numpy_options(values: tuple[Any, ...]) -> dict[str, Any]:
    options = dict(zip(DEFAULTS, values, strict=True))
    for name in TENSORS:
        if options[name] is not None:
            options[name] = _array(options[name])
    return options


def _forward(logits: torch.Tensor, targets: torch.Tensor, *values: Any) -> tuple[torch.Tensor, ...]:
    loss, stats = numpy_cross_entropy(_array(logits), _array(targets), **_numpy_options(values), return_stats=True)
    return _of_rows(loss), _of_rows(stats.row_max), _of_rows(stats.tail)


def _forward_fake(logits: torch.Tensor, targets: torch.Tensor, *values: Any) -> tuple[torch.Tensor, ...]:
    options = dict(zip(DEFAULTS, values, strict=True))
    rows = list(logits.shape)
    del rows[options["axis"]]
    dtype = _computed(logits)
    loss = logits.new_empty(rows if options["reduction"] == "none" else [], dtype=dtype)
    return loss, logits.new_empty(rows, dtype=dtype), logits.new_empty(rows, dtype=dtype)


def _backward(
    upstream: torch.Tensor,
    logits: torch.Tensor,
    targets: torch.Tensor,
    row_max: torch.Tensor,
    tail: torch.Tensor,
    *values: Any,
) -> torch.Tensor:
    x, stats = _array(logits), SoftmaxStats(_array(row_max), _array(tail))
    # PyTorch has to know the strides without computing, so they are those of its own empty_like. NumPy allocates: it
    # asks for huge pages.
    strides = torch.empty_like(logits, device="meta").stride()
    grad = _tensor(np.empty(logits.numel(), x.dtype)).as_strided(logits.shape, strides)
    cross_entropy_grad(
        x, _array(targets), **_numpy_options(values), upstream=_array(upstream), stats=stats, out=_array(grad)
    )
    return grad


def _backward_fake(upstream: torch.Tensor, logits: torch.Tensor, *others: Any) -> torch.Tensor:
    return torch.empty_like(logits)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[torch.Tensor, ...]:
        loss, row_max, tail = _below_autograd(*arguments)
        logits, targets, *values = arguments
        # Tensors among the options are saved like the inputs, so that torch notices if they are modified meanwhile.
        ctx.save_for_backward(logits, targets, row_max, tail, *(values[at] for at in _TENSORS_AT))
        ctx.values = [None if at in _TENSORS_AT else value for at, value in enumerate(values)]
        ctx.mark_non_differentiable(row_max, tail)
        ctx.set_materialize_grads(False)
        return loss, row_max, tail

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor | None, *none: Any) -> tuple[torch.Tensor | None, ...]:
        if upstream is None:  # nothing depends on the loss
            return None, None, *(None for _ in ctx.values)
        logits, targets, row_max, tail, *tensors = ctx.saved_tensors
        values = list(ctx.values)
        for at, tensor in zip(_TENSORS_AT, tensors, strict=True):
            values[at] = tensor
        grad_of = _Gradient.apply if torch.is_grad_enabled() else backward_operator  # with create_graph=True
        return grad_of(upstream, logits, targets, row_max, tail, *values), None, *(None for _ in values)


class _Gradient(torch.autograd.Function):
    """The gradient where autograd records it: not a constant, but without a derivative."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        grad: torch.Tensor = backward_operator(*arguments)
        return grad

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        raise RuntimeError("fastce's cross_entropy has no second derivatives; use torch's where they are needed")


def _below_autograd(*arguments: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return forward_operator(*arguments)


def _autograd(*arguments: Any) -> Any:
    if torch.is_grad_enabled() and arguments[0].requires_grad:
        return _CrossEntropy.apply(*arguments)
    return _below_autograd(*arguments)


# Defined without defaults, for PyTorch leaves out arguments that have their default.
_OPTIONS = ", ".join(f"{TYPES[p.annotation]} {p.name}" for p in PARAMETERS)
_STATS = "Tensor logits, Tensor targets, Tensor row_max, Tensor tail"
NAMESPACE = __name__.rpartition(".integrations.")[0].replace(".", "_")
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # the operators last as long as this object
LIBRARY.define(
    f"cross_entropy(Tensor logits, Tensor targets, {_OPTIONS}) -> (Tensor loss, Tensor row_max, Tensor tail)"
)
LIBRARY.define(f"cross_entropy_grad(Tensor upstream, {_STATS}, {_OPTIONS}) -> Tensor")
for _name, _kernel, _fake in (
    ("cross_entropy", _forward, _forward_fake),
    ("cross_entropy_grad", _backward, _backward_fake),
):
    LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake, lib=LIBRARY)
# register_autograd would do the same and take 50 us longer for a forward and a backward.
LIBRARY.impl("cross_entropy", _autograd, "Autograd")
_operators = getattr(torch.ops, NAMESPACE)
forward_operator = _operators.cross_entropy.default
backward_operator = _operators.cross_entropy_grad.default


def as_option(name: str, value: Any) -> Any:
    """The value of an option that is a tensor, or can be made one."""
    if value is None or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost")
    return torch.from_numpy(np.array(value, dtype=np.float64))


def _check_detached(name: str, tensor: torch.Tensor) -> None:
    if tensor.requires_grad:
        raise ValueError(f"{name} requires grad, but the gradient is that of the logits; pass {name}.detach()")


def _check_constant(name: str, tensor: torch.Tensor) -> None:
    _check_detached(name, tensor)
    if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} has dtype {tensor.dtype}, which NumPy has not; cast it: {name}.float()")


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
    """`fastce.cross_entropy` of CPU tensors, differentiable (once) with respect to the logits.

    Parameters
    ----------
    logits : Tensor
        Of dtype float16, bfloat16 (with the package ml_dtypes), float32 or float64 (integers are computed as float64),
        any number of dimensions, classes on the last axis (PyTorch's own function has them on axis 1: pass ``axis=1``).
    targets : Tensor
        Class indices of the shape of `logits` without its class axis, or probabilities of the shape of `logits`.
    **options
        Those of `fastce.cross_entropy`, but for `return_stats`; `weight` and `sample_weight` may be tensors.

    Returns
    -------
    loss : Tensor
        In the dtype of the logits, but float32 for float16 and bfloat16; of the rows' shape for ``reduction="none"``,
        else without axes.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `fastce.cross_entropy`; a tensor that is not on the CPU, or that needs a gradient and is not the logits.
    RuntimeError
        An option that PyTorch cannot convert to the type of its default; in the backward, if the logits, targets or
        weights were modified; in a second backward through the gradient.

    See Also
    --------
    functional.cross_entropy : With the signature and the class axis of PyTorch's function.

    Notes
    -----
    The loss is that of `fastce.cross_entropy`, and the backward is `fastce.cross_entropy_grad`. Both are operators
    (``torch.ops.fastce.cross_entropy``) that `torch.compile` calls without a break of the graph. See "PyTorch Custom
    Operators" in PyTorch's documentation.

    Examples
    --------
    >>> import torch
    >>> from fastce.integrations.torch import cross_entropy
    >>> logits = torch.zeros(2, 2, requires_grad=True)
    >>> loss = cross_entropy(logits, torch.tensor([0, 1]))
    >>> loss.backward()
    >>> logits.grad
    tensor([[-0.2500,  0.2500],
            [ 0.2500, -0.2500]])
    """
    values = DEFAULTS | options
    if len(values) != len(DEFAULTS):
        name = min(values.keys() - DEFAULTS.keys())
        note = ": the loss alone can be differentiated" if name == "return_stats" else ""
        raise TypeError(f"{name} is not an option here{note}")
    for name, value in (("logits", logits), ("targets", targets)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} is {type(value).__name__}, expected a torch.Tensor")
    for name, value in (("logits", logits), ("targets", targets)):
        if value.is_floating_point() and value.dtype not in FLOATING:
            raise TypeError(f"{name} has dtype {value.dtype}, expected one of {', '.join(map(str, FLOATING))}")
        if value.dtype == torch.bfloat16:
            _bfloat16()
    _check_detached("targets", targets)
    for name in TENSORS:
        if values[name] is not None:
            values[name] = as_option(name, values[name])
            _check_constant(name, values[name])
    loss: torch.Tensor = forward_operator(logits, targets, *values.values())[0]
    return loss
