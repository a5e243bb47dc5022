"""What the attention layers of next-scale transformers share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from nextscale.kernels import attention
from nextscale.scales import Grid, ScaleSchedule

MAX_LOG_SCALE = math.log(100)
ROPE_BASE = 10000.0
# The coarsest steps that have so many positions together are attended to at once.
JOINED = 96


def level_mask(lengths: Sequence[int], *, device: torch.device | None = None) -> Tensor:
    """Boolean ``(L, L)``, true where a position may attend: its own step and every coarser one.

    lengths: of the steps, one after the other.
    """
    level = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
    return level[:, None] >= level[None, :]


def block_causal_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], *, scale: float | None = None
) -> Tensor:
    """Attend from every step to itself and all coarser ones, step by step.

    q, k, v: ``(B, H, L, d)``, all steps one after another; lengths: how many positions each has.

    The same as one pass over the whole square with :func:`level_mask`, but what the mask would cut off is
    not computed (38 % of the square on VAR's ten scales), and needs no mask: only the coarsest steps, up to
    :data:`JOINED` positions, are small enough to be cheaper together than one by one.
    """
    ends = list(accumulate(lengths))
    joined = max(sum(end <= JOINED for end in ends), 1)
    first = ends[joined - 1]
    mask = level_mask(lengths[:joined], device=q.device) if joined > 1 else None
    parts = [attention(q[:, :, :first], k[:, :, :first], v[:, :, :first], mask=mask, scale=scale)]
    for start, end in pairwise(ends[joined - 1 :]):
        parts.append(attention(q[:, :, start:end], k[:, :, :end], v[:, :, :end], scale=scale))
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


def split_heads(qkv: Tensor, heads: int, log_scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Projected positions ``(B, l, 3C)`` -> queries, keys and values, ``(B, H, l, d)`` each.

    log_scale: ``(1, H, 1, 1)``; with it, queries and keys are those of :func:`normalise_qk`.
    """
    parts = qkv.unflatten(-1, (3, heads, -1))
    qk, v = parts[:, :, :2], parts[:, :, 2].transpose(1, 2)
    q, k = (qk if log_scale is None else normalise_qk(qk, log_scale)).permute(2, 0, 3, 1, 4)
    return q, k, v


def normalise_qk(qk: Tensor, log_scale: Tensor) -> Tensor:
    """Unit queries times a learned temperature per head, and unit keys: ``(B, l, 2, H, d)``, in float32.

    The temperature ``log_scale`` ``(1, H, 1, 1)`` is a logarithm with a ceiling at ln 100. Lengths are
    bounded as in :func:`torch.nn.functional.normalize`. Both are made at once, and as they lie in memory:
    heads are brought together by whoever reads them next.
    """
    qk = qk.float()
    temperature = log_scale.float().clamp(max=MAX_LOG_SCALE).exp().view(-1, 1)  # (H, 1)
    inverse = torch.linalg.vector_norm(qk, dim=-1, keepdim=True).clamp_min(1e-12).reciprocal()
    return qk * (inverse * torch.stack([temperature, torch.ones_like(temperature)]))


class Rotation(NamedTuple):
    """Rotary positions: cosines and sines of the angles of L positions, each ``(L, d / 2)`` float32."""

    cos: Tensor
    sin: Tensor

    def part(self, span: slice) -> Rotation:
        return Rotation(self.cos[span], self.sin[span])


def rotate_pairs(x: Tensor, rotation: Rotation) -> Tensor:
    """Channels 2k and 2k + 1 of every head, rotated by angle k of the position; ``(B, H, L, d)`` float32.

    ``(a, b) -> (a cos - b sin, a sin + b cos)``, as a new tensor.
    """
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)  # each (B, H, L, d / 2)
    cos, sin = rotation
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a table first made during inference must serve training as well
def grid_rotation(schedule: ScaleSchedule, reference: Grid, head_dim: int, device: torch.device) -> Rotation:
    """Rotary angles of all positions of a schedule, in the coordinates of one reference grid.

    Token ``(r, s)`` of a grid ``(h, w)`` stands at ``(round(r R_h / h), round(s R_w / w))``, halves to even,
    with ``reference = (R_h, R_w)``. The first half of a head's ``d / 2`` angles turns with the row and the
    second with the column, at frequencies ``10000^(-2j / (d / 2))``, j = 0 … d / 4 - 1; d is a multiple of 4.
    """
    half = head_dim // 2
    frequencies = ROPE_BASE ** (-torch.arange(0, half, 2, dtype=torch.float64, device="cpu") / half)
    rows, columns = reference
    cells = [torch.cartesian_prod(_spread(h, rows), _spread(w, columns)) for h, w in schedule]  # (h * w, 2)
    angles = (torch.cat(cells)[:, :, None] * frequencies).flatten(1)  # (L, d / 2)
    return Rotation(angles.cos().float().to(device), angles.sin().float().to(device))


def _spread(count: int, reference: int) -> Tensor:
    return torch.round(torch.arange(count, dtype=torch.float64, device="cpu") * reference / count)
