"""Muon: descent along gradients whose singular values were made equal, for matrices of transformers.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/), with steps as long as AdamW's (Liu et al.
2025, arXiv 2502.16982), so that one learning rate serves both. PyTorch has it from 2.9 on
(``torch.optim.Muon``), but multiplies in bfloat16 always, which on a processor that has no instructions for
it takes twenty times as long as in float32; and this library works from PyTorch 2.4 on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, which they make fast rather than exact
ITERATIONS = 5
LENGTH = 0.2  # of a step per entry: what AdamW's are in practice


def orthogonal(matrices: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bring all singular values of matrices ``(..., m, n)`` to between about 0.7 and 1.2.

    dtype: to multiply in.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def is_inner(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix that multiplies the tokens inside a block.

    Modulations see nothing but the class, so their gradients have few directions, and no more are to be made.
    """
    return name.startswith("blocks.") and parameter.ndim == 2 and "ada_" not in name


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is made orthogonal, for matrices alone; weight decay is decoupled.

    momentum: after Nesterov. dtype: to orthogonalise in.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Descend along the gradients at hand."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append((p, self._ahead(p, p.grad, group["momentum"])))
            for shape, pairs in alike.items():
                moves = orthogonal(torch.stack([ahead for _, ahead in pairs]), dtype=self.dtype)
                for (p, _), move in zip(pairs, moves, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(move, alpha=-group["lr"] * LENGTH * max(shape) ** 0.5)

    def _ahead(self, p: nn.Parameter, gradient: Tensor, momentum: float) -> Tensor:
        """The average of gradients, as it will be if the next one is like this one."""
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)


class Pair:
    """Two optimisers, each for its own parameters, that look like one."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for each in self.optimizers for group in each.param_groups]

    def step(self) -> None:
        for each in self.optimizers:
            each.step()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": [each.state_dict() for each in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for each, its in zip(self.optimizers, state["optimizers"], strict=True):
            each.load_state_dict(its)
