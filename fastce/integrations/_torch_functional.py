"""`torch.nn.functional` with fastce: `cross_entropy` with PyTorch's signature. It is `functional` of torch.py."""

from __future__ import annotations

import warnings

import torch

from . import _torch

__all__ = ["cross_entropy"]


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """`fastce.cross_entropy` of CPU tensors, with the signature of ``torch.nn.functional.cross_entropy``.

    Parameters
    ----------
    input : Tensor
        Logits of shape (classes,), (rows, classes) or (rows, classes, d1, d2, ...), float32 or float64.
    target : Tensor
        Class indices of the shape of `input` without its class axis, or probabilities of the shape of `input`.
    weight : Tensor of shape (classes,), optional
        A weight for each class, finite and >= 0.
    size_average : bool, optional
        Deprecated, as in PyTorch: see `reduce`.
    ignore_index : int, default -100
        Rows with this class index have loss 0 and gradient 0 and are excluded from the mean.
    reduce : bool, optional
        Deprecated, as in PyTorch. If it or `size_average` is given, it replaces `reduction`: by "none" if `reduce` is
        False, by "sum" if `size_average` is False, else by "mean".
    reduction : {"mean", "sum", "none"}, default "mean"
        As in `fastce.cross_entropy`.
    label_smoothing : float, default 0.0
        As in `fastce.cross_entropy`.

    Returns
    -------
    loss : Tensor
        In the dtype of `input`; of the rows' shape for ``reduction="none"``, else without axes.

    Raises
    ------
    TypeError, ValueError, IndexError, RuntimeError
        As in `fastce.integrations.torch.cross_entropy`.

    Warns
    -----
    UserWarning
        `size_average` or `reduce` is given.

    Notes
    -----
    The result is that of PyTorch's function but for rounding, with these differences: class indices may have any
    integer dtype; probabilities that require a gradient are an error, as are weights that are negative or not finite;
    the gradient of ignored rows is 0 even where they contain NaN, and all gradients are 0 where the mean is that of
    nothing; a probability of 0 where the logit is -inf adds 0; a second derivative is an error. A confident row keeps
    its digits: the loss ``logsumexp(x) - x[t]`` is computed without cancellation.

    Examples
    --------
    >>> import torch
    >>> from fastce.integrations.torch import functional as F
    >>> F.cross_entropy(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64))
    tensor(1.0986)
    """
    if size_average is not None or reduce is not None:
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
        warnings.warn(f"size_average and reduce are deprecated, use reduction={reduction!r}", UserWarning, stacklevel=2)
    axis = 0 if isinstance(input, torch.Tensor) and input.dim() == 1 else 1
    return _torch.cross_entropy(
        input,
        target,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction=reduction,
        axis=axis,
    )
