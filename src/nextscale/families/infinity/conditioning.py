"""What Infinity's transformer makes of a text before its first block: a norm, and one vector for the whole.

Parameter names are the keys of the published files.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.kernels import linear
from nextscale.nn.initial import normal
from nextscale.nn.linear import Linear


def keys_values(text: Tensor, projection: nn.Linear, v_bias: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys, which have no bias, and values of text rows ``(B, T, W)``, each ``(B, heads, T, d)``."""
    kv = linear(text, projection.weight, torch.cat([torch.zeros_like(v_bias), v_bias]))
    k, v = kv.unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    return k, v


class PoolingAttention(nn.Module):
    """One learned query per head over the text."""

    def __init__(self, text_dim: int, dim: int, heads: int) -> None:
        super().__init__()
        self.mat_q = normal(1, heads, dim // heads, std=1 / math.sqrt(dim))
        self.mat_kv = Linear(text_dim, 2 * dim, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:  # (B, T, W) -> (B, C)
        heads = self.mat_q.shape[1]
        k, v = keys_values(text, self.mat_kv, self.v_bias, heads)
        q = self.mat_q[:, :, None].to(k.dtype).expand(len(text), -1, -1, -1)  # (B, P, 1, C / P)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        result: Tensor = self.proj(out.flatten(1))
        return result


class TextPool(nn.Module):
    """Text rows to one vector; the published keys have this level in between."""

    def __init__(self, text_dim: int, dim: int, heads: int) -> None:
        super().__init__()
        self.ca = PoolingAttention(text_dim, dim, heads)

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        result: Tensor = self.ca(text, mask)
        return result


class TextNorm(nn.Module):
    """Root-mean-square norm of the text features, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight.float()
