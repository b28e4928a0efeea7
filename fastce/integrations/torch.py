"""fastce as a loss of PyTorch, on CPU tensors: `cross_entropy` and the module `CrossEntropyLoss`.

Tensors and arrays share their memory both ways, nothing is copied. Between forward and backward two numbers a row are
kept (`fastce.SoftmaxStats`), not a gradient: the backward may run again (``retain_graph``), or never.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import CrossEntropyLoss as NumPyLoss
from .. import SoftmaxStats, cross_entropy_grad
from .. import cross_entropy as numpy_cross_entropy

__all__ = ["CrossEntropyLoss", "cross_entropy"]


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
    """`fastce.cross_entropy` of CPU tensors, differentiable (once) with respect to the logits.

    Parameters
    ----------
    logits : Tensor
        Of dtype float32 or float64 (integers are computed as float64), any number of dimensions, classes on the last
        axis (PyTorch's own function has them on axis 1: pass ``axis=1``).
    targets : Tensor
        Class indices of the shape of `logits` without its class axis, or probabilities of the shape of `logits`.
    **options
        Those of `fastce.cross_entropy`, but for `return_stats`; `weight` and `sample_weight` may be tensors.

    Returns
    -------
    loss : Tensor
        In the dtype of the logits; of the rows' shape for ``reduction="none"``, else without axes.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `fastce.cross_entropy`; a tensor that is not on the CPU, or that needs a gradient and is not the logits.
    RuntimeError
        In a backward with ``create_graph=True``.

    Notes
    -----
    The backward is `fastce.cross_entropy_grad`. See "Extending PyTorch" in its documentation, and there
    ``torch.nn.functional.cross_entropy``, which this is but for the differences listed in `fastce.cross_entropy`.

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
    if "return_stats" in options:
        raise TypeError("return_stats is not an option here: the loss alone can be differentiated")
    for name, value in [("logits", logits), ("targets", targets)]:
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} is {type(value).__name__}, expected a torch.Tensor")
    if logits.is_floating_point() and logits.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"logits has dtype {logits.dtype}, expected float32 or float64; cast it: logits.float()")
    for name, value in [("targets", targets), *options.items()]:
        if isinstance(value, torch.Tensor):
            if value.requires_grad:
                raise ValueError(f"{name} requires grad, but the gradient is that of the logits; pass {name}.detach()")
            if value.is_floating_point() and value.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"{name} has dtype {value.dtype}, which NumPy has not; cast it: {name}.float()")
    loss: torch.Tensor = _CrossEntropy.apply(logits, targets, options)
    return loss


def _arrays(options: dict[str, Any]) -> dict[str, Any]:
    """The options with arrays in place of tensors."""
    return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in options.items()}


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        loss, stats = numpy_cross_entropy(logits.numpy(), targets.numpy(), **_arrays(options), return_stats=True)
        # Tensors among the options are saved like the inputs, so that torch notices if they are modified meanwhile.
        tensors = {name: value for name, value in options.items() if isinstance(value, torch.Tensor)}
        ctx.options, ctx.names = options, list(tensors)
        ctx.save_for_backward(logits, targets, *(torch.as_tensor(array) for array in stats), *tensors.values())
        return torch.as_tensor(loss)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if torch.is_grad_enabled():  # create_graph=True: the result would pass for a constant
            raise RuntimeError("fastce's cross_entropy has no second derivatives; use torch's where they are needed")
        logits, targets, row_max, tail, *tensors = (tensor.numpy() for tensor in ctx.saved_tensors)
        options = ctx.options | dict(zip(ctx.names, tensors, strict=True))
        stats = SoftmaxStats(row_max, tail)
        grad = cross_entropy_grad(logits, targets, **options, upstream=upstream.numpy(), stats=stats)
        return torch.from_numpy(grad), None, None


class CrossEntropyLoss(torch.nn.Module):
    """`cross_entropy` as a module.

    Parameters
    ----------
    **options
        Those of `cross_entropy`.

    Raises
    ------
    TypeError
        An option has no such name.

    Examples
    --------
    >>> import torch
    >>> from fastce.integrations.torch import CrossEntropyLoss
    >>> CrossEntropyLoss(axis=1)(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64))
    tensor(1.0986)
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        NumPyLoss(**options)  # complains of unknown names here, not at the first call
        self.options = options

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss; what calling the module does.

        Parameters
        ----------
        logits, targets : Tensor
            As in `cross_entropy`.

        Returns
        -------
        loss : Tensor
            As `cross_entropy` returns it.

        Raises
        ------
        TypeError, ValueError, IndexError
            As in `cross_entropy`.

        Examples
        --------
        >>> import torch
        >>> from fastce.integrations.torch import CrossEntropyLoss
        >>> CrossEntropyLoss(reduction="none")(torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor([1.0986, 1.0986])
        """
        return cross_entropy(logits, targets, **self.options)

    def extra_repr(self) -> str:
        """The options, for the module's ``repr``.

        Returns
        -------
        text : str
            As ``name=value, ...``.

        Examples
        --------
        >>> from fastce.integrations.torch import CrossEntropyLoss
        >>> CrossEntropyLoss(axis=1, z_loss=1e-4)
        CrossEntropyLoss(axis=1, z_loss=0.0001)
        """
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
