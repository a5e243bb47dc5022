"""What the transformer blocks of VAR and Infinity share: modulation by a condition, and the feed-forward.

Attribute names are the keys of the published checkpoints.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from nextscale.kernels import linear, modulated_norm
from nextscale.nn.linear import Linear


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast switched off, on devices that have it."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


class UpcastLinear(nn.Linear):
    """A linear layer computed in the dtype of its input: float32 also where weights are stored in half."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear(x, self.weight.to(x.dtype), bias)


class AdaLinear(nn.Sequential):
    """Condition vector ``(B, C)`` -> ``count`` modulation vectors ``(B, 1, count, C)``, in its dtype."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__(nn.SiLU(), UpcastLinear(dim, count * dim))  # the key of the projection ends in ".1"
        self.count = count

    def forward(self, condition: Tensor) -> Tensor:
        result: Tensor = self[1](self[0](condition))
        return result.view(len(condition), 1, self.count, -1)


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(self.fc1(x, gelu=True))
        return result


def drop_branches(branch: Tensor, rate: float, training: bool) -> Tensor:
    """Stochastic depth, in training only: a residual branch ``(B, L, C)`` is dropped for some samples.

    What is kept is divided by the share that is kept, so the mean stays as it is.
    """
    if not training or rate == 0:
        return branch
    kept = torch.rand(len(branch), 1, 1, device=branch.device) < 1 - rate
    return branch * (kept.to(branch.dtype) / (1 - rate))


class HeadNorm(nn.Module):
    """The norm before the classifier, scaled and shifted by the raw condition vector, in the dtype of x."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.ada_lin = AdaLinear(dim, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition).unbind(2)
        return modulated_norm(x, scale, shift, eps=self.eps)
