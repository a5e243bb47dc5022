"""HART's rotary positions: one-dimensional for text, and rows and columns of the finest grid for maps.

Every channel j is paired with channel j + d/2 of its head. In maps the first half of the angles holds the
rows and the second half the columns, so the two members of a pair meet different angles and the result is no
rotation. The published weights were trained with exactly that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nextscale.scales import Grid

THETA = 10000.0


class Rotation(NamedTuple):
    """Cosines and sines of every position's angles, each float32 ``(B, L, d)``."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def text(cls, positions: Tensor, dim: int) -> Rotation:
        """For whole positions ``(B, T)``; both halves of the ``dim`` angles are alike."""
        return cls.by(_angles(positions, dim // 2).repeat(1, 1, 2))

    @classmethod
    def maps(cls, places: Tensor, dim: int) -> Rotation:
        """For places ``(B, l, 2)``, row and column."""
        rows, columns = (_angles(p, dim // 4) for p in places.unbind(-1))
        return cls.by(torch.cat([rows, rows, columns, columns], dim=-1))

    @classmethod
    def by(cls, angles: Tensor) -> Rotation:
        return cls(angles.cos(), angles.sin())

    @classmethod
    def cat(cls, parts: Sequence[Rotation]) -> Rotation:
        """Of a sequence's segments, one after the other."""
        return cls(*(torch.cat(values, dim=1) for values in zip(*parts, strict=True)))


def _angles(positions: Tensor, count: int) -> Tensor:
    """``(...)`` times the frequencies ``theta^(-i/count)``, i = 0..count-1 -> ``(..., count)``."""
    powers = torch.arange(count, dtype=torch.float32, device=positions.device) / count
    return positions.float()[..., None] * (1.0 / THETA**powers)


def map_positions(grid: Grid, final: Grid, origin: Tensor, cells: Tensor | None = None) -> Tensor:
    """Places of a grid's cells, in units of the finest grid's cells, behind the text: float32 ``(B, l, 2)``.

    origin: int64 ``(B,)``, the position of the last text token, which is where maps begin. cells: int64
    ``(B, l)``, the row-major cells wanted; None for all, in order.
    """
    (h, w), device = grid, origin.device
    if cells is None:
        cells = torch.arange(h * w, device=device).expand(len(origin), -1)
    start = origin.float()[:, None]
    # Divided, multiplied and added in this order, in float32, as published.
    rows = (cells // w).float() / h * final[0] + start
    columns = (cells % w).float() / w * final[1] + start
    return torch.stack([rows, columns], dim=-1)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys ``(B, H, L, d)`` at their positions; computed in float32, returned like x."""
    h = x.float()
    first, second = h.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (h * rotation.cos[:, None] + turned * rotation.sin[:, None]).to(x.dtype)
