"""Clamping that hides nothing."""

from __future__ import annotations

from torch import Tensor


def bounded(values: Tensor) -> Tensor:
    """Clamp values to [-1, 1], as a new float32 tensor; infinite ones become NaN, and not the bound."""
    values = values.float()
    return values.clamp(-1, 1).add_(values, alpha=0)
