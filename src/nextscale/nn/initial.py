"""Parameters that begin as normal random numbers, but for those that only stand for what will be loaded.

Such modules are built on the meta device, where PyTorch draws nothing, and yet loads its compiler to do so,
which takes longer than all else that a first small picture needs.
"""

from __future__ import annotations

import torch
from torch import nn


def normal(*shape: int, std: float) -> nn.Parameter:
    """A parameter of this shape with mean 0."""
    values = torch.empty(shape)
    return nn.Parameter(values if values.is_meta else nn.init.normal_(values, std=std))


class Embedding(nn.Embedding):
    """``nn.Embedding``."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
