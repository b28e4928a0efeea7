"""fastce as a loss of PyTorch, on CPU tensors: `cross_entropy`, the module `CrossEntropyLoss`, and `functional` with
PyTorch's signature.

Tensors and arrays share their memory both ways, nothing is copied. Between forward and backward two numbers a row are
kept (`fastce.SoftmaxStats`), not a gradient: the backward may run again (``retain_graph``), or never. Operators written
in Python cost about 0.1 ms a step more than PyTorch's own, so steps get faster from some 200,000 logits on.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import CrossEntropyLoss as NumPyLoss
from . import _torch_functional as functional
from ._torch import TENSORS, as_option, cross_entropy

__all__ = ["CrossEntropyLoss", "cross_entropy", "functional"]


class CrossEntropyLoss(torch.nn.Module):
    """`cross_entropy` as a module.

    Parameters
    ----------
    **options
        Those of `cross_entropy`. `weight` and `sample_weight` become buffers: they move with the module (``.to``) and
        are part of its ``state_dict``.

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
        self.options = {name: value for name, value in options.items() if name not in TENSORS}
        for name in TENSORS:
            self.register_buffer(name, as_option(name, options.get(name)))

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
        buffers = {name: getattr(self, name) for name in TENSORS}
        return cross_entropy(logits, targets, **self.options, **buffers)

    def extra_repr(self) -> str:
        """The options but for the buffers, for the module's ``repr``.

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
