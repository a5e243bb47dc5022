"""What the attention layers of next-scale transformers share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.scales import ScaleSchedule

MAX_LOG_SCALE = math.log(100)


def block_causal_mask(schedule: ScaleSchedule, *, device: torch.device | None = None) -> Tensor:
    """Boolean ``(L, L)``, true where a position may attend: its own step and every coarser one."""
    level = torch.repeat_interleave(torch.arange(schedule.num_steps), torch.tensor(schedule.lengths)).to(
        device
    )
    return level[:, None] >= level[None, :]


def normalise_qk(q: Tensor, k: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Unit queries times a learned temperature per head, and unit keys; both ``(B, H, L, d)``.

    The temperature ``log_scale`` ``(1, H, 1, 1)`` is a logarithm with a ceiling at ln 100.
    """
    scale = log_scale.float().clamp(max=MAX_LOG_SCALE).exp()
    return (F.normalize(q.float(), dim=-1) * scale).to(q.dtype), F.normalize(k.float(), dim=-1).to(k.dtype)
