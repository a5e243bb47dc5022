"""Embedding of a whole number (a diffusion timestep, the number of a scale) by sinusoids and a small MLP."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nextscale.nn.linear import Linear

FEATURES = 256
MAX_PERIOD = 10000.0


def sinusoids(numbers: Tensor, count: int = FEATURES) -> Tensor:
    """``(...)`` -> float32 ``(..., count)``: the cosines of ``n w_i``, then the sines.

    ``w_i = 10000^(-2i/count)`` for i below count / 2 (Vaswani et al. 2017, arXiv 1706.03762, in the order
    that diffusion models use).
    """
    half = count // 2
    powers = torch.arange(half, dtype=torch.float32, device=numbers.device) / half
    angles = numbers.float()[..., None] * torch.exp(-math.log(MAX_PERIOD) * powers)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Numbers ``(...)`` to vectors ``(..., width)``; the attribute name is a published key."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(FEATURES, width), nn.SiLU(), Linear(width, width))

    def forward(self, numbers: Tensor) -> Tensor:
        result: Tensor = self.mlp(sinusoids(numbers).to(next(self.parameters()).dtype))
        return result
