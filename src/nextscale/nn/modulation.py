"""What the transformer blocks of VAR and Infinity share: modulation by a condition, and the feed-forward.

Attribute names are the keys of the published checkpoints.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class AdaLinear(nn.Sequential):
    """Condition vector ``(B, C)`` -> ``count`` modulation vectors ``(B, 1, count, C)``."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(dim, count * dim))  # the key of the projection ends in ".1"
        self.count = count

    def forward(self, condition: Tensor) -> Tensor:
        result: Tensor = self[1](self[0](condition))
        return result.view(len(condition), 1, self.count, -1)


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return result


class HeadNorm(nn.Module):
    """The norm before the classifier, scaled and shifted by the raw class vector."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps, elementwise_affine=False)
        self.ada_lin = AdaLinear(dim, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition).unbind(2)
        return self.norm(x) * (1 + scale) + shift
