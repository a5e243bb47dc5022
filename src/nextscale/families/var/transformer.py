"""VAR's transformer: logits for all tokens of a scale, given the class and the coarser scales.

Source: Tian et al. 2024 (arXiv 2404.02905). Parameter names are the keys of the published files
``var_d*.pth``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.kernels import attention, fused_for, gated, gated_norm, modulated_norm
from nextscale.nn.attention import MAX_LOG_SCALE, block_causal_attention, split_heads
from nextscale.nn.cache import KVCache
from nextscale.nn.initial import Embedding, normal
from nextscale.nn.linear import Linear
from nextscale.nn.modulation import AdaLinear, FeedForward, HeadNorm, drop_branches
from nextscale.scales import Grid, ScaleSchedule


@dataclass(frozen=True)
class VARTransformerConfig:
    """Sizes of the transformer; the defaults are those of the published d16.

    num_heads: ``None`` for heads of 64 channels.
    attn_l2_norm: normalised queries and keys with a learned temperature per head.
    shared_aln: one condition projection for all blocks (the published d36) instead of one per block.
    drop_path: stochastic depth of the last block in training; earlier blocks get proportionally less.
    """

    vocab_size: int = 4096
    z_channels: int = 32
    num_classes: int = 1000
    depth: int = 16
    embed_dim: int = 1024
    num_heads: int | None = None
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    shared_aln: bool = False
    attn_l2_norm: bool = True
    drop_path: float = 0.0
    patch_nums: tuple[int | Grid, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)

    def __post_init__(self) -> None:
        if self.num_heads is None:
            object.__setattr__(self, "num_heads", max(self.embed_dim // 64, 1))
        if self.embed_dim % self.heads:
            raise InvalidArgumentError(
                f"embed_dim must be a multiple of num_heads, got {self.embed_dim} and {self.num_heads}"
            )
        sides = tuple(tuple(v) if isinstance(v, list) else v for v in self.patch_nums)
        object.__setattr__(self, "patch_nums", sides)

    @property
    def heads(self) -> int:
        return self.num_heads or 1

    @property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.from_sides(self.patch_nums)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class SelfAttention(nn.Module):
    """Multi-head attention; keys have no bias, and published files hold zeros in its place."""

    def __init__(self, config: VARTransformerConfig) -> None:
        super().__init__()
        dim, self.heads = config.embed_dim, config.heads
        self.mat_qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)
        self.scale_mul_1H11: nn.Parameter | None = None
        if config.attn_l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4)))

    def forward(self, x: Tensor, lengths: Sequence[int] | None, cache: KVCache | None) -> Tensor:
        """x ``(B, L, C)`` -> same; lengths: of the steps in x, or ``None`` if x is one step."""
        batch, length, dim = x.shape
        q, k, v = self._heads(x, cache)
        scale = 0.25 / math.sqrt(dim // self.heads) if self.scale_mul_1H11 is None else 1.0
        if lengths is None:
            out = attention(q, k, v, scale=scale)
        else:
            out = block_causal_attention(q, k, v, lengths, scale=scale)
        result: Tensor = self.proj(out.transpose(1, 2).reshape(batch, length, dim))
        return result

    def _heads(self, x: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of these positions, keys and values of these or, with a cache, of all so far."""
        fused = fused_for(x)
        if fused is not None and cache is not None:
            biases, new = (self.q_bias, self.v_bias), slice(-x.shape[1], None)
            k, v = cache.extended(x.shape[1])
            room = k[:, :, new], v[:, :, new]
            q = fused.split_heads(self.mat_qkv(x), *biases, self.scale_mul_1H11, MAX_LOG_SCALE, *room)
            return q, k, v
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = split_heads(self.mat_qkv(x, bias=bias), self.heads, self.scale_mul_1H11)
        if cache is not None:
            k, v = cache.append(k, v)
        return q, k, v


class Block(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the condition."""

    def __init__(self, config: VARTransformerConfig, drop_path: float) -> None:
        super().__init__()
        dim, self.eps = config.embed_dim, config.norm_eps
        self.attn = SelfAttention(config)
        self.ffn = FeedForward(dim, round(dim * config.mlp_ratio))
        self.drop_path = drop_path
        if config.shared_aln:
            self.ada_gss = normal(1, 1, 6, dim, std=1 / math.sqrt(dim))
        else:
            self.ada_lin = AdaLinear(dim, 6)

    def modulation(self, condition: Tensor) -> Tensor:
        """What the block is scaled, shifted and gated by, ``(B, 1, 6, C)``.

        condition: ``(B, C)``, or in the shared form the projected ``(B, 1, 6, C)``.
        """
        made: Tensor = self.ada_gss + condition if hasattr(self, "ada_gss") else self.ada_lin(condition)
        return made

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        lengths: Sequence[int] | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x ``(B, L, C)``; modulation from :meth:`modulation`; lengths of the steps in x, if several."""
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unbind(2)  # each (B, 1, C)
        h = self.attn(modulated_norm(x, scale1, shift1, eps=self.eps), lengths, cache)
        h = drop_branches(h, self.drop_path, self.training)
        x, h = gated_norm(x, h, gate1, scale2, shift2, eps=self.eps)
        h = self.ffn(h)
        return gated(x, drop_branches(h, self.drop_path, self.training), gate2)


class VARTransformer(nn.Module):
    """Class labels and coarser scales in, token logits out."""

    def __init__(self, config: VARTransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim, schedule = config.embed_dim, config.schedule
        self.word_embed = Linear(config.z_channels, dim)
        self.class_emb = Embedding(config.num_classes + 1, dim)
        self.pos_start = nn.Parameter(torch.empty(1, schedule.lengths[0], dim))
        self.pos_1LC = nn.Parameter(torch.empty(1, schedule.num_tokens, dim))
        self.lvl_embed = Embedding(schedule.num_steps, dim)
        if config.shared_aln:
            self.shared_ada_lin = AdaLinear(dim, 6)
        drop = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, q) for q in drop)
        self.head_nm = HeadNorm(dim, config.norm_eps)
        self.head = Linear(dim, config.vocab_size)

    @property
    def schedule(self) -> ScaleSchedule:
        return self.config.schedule

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def null_label(self) -> int:
        """The class index that stands for "no class"."""
        return self.config.num_classes

    def forward(self, labels: Tensor, inputs: Tensor) -> Tensor:
        """Teacher forcing: logits of every position, float32 ``(B, L, V)``.

        labels: int64 ``(B,)`` in 0..num_classes, the last meaning "no class". Labels are never dropped here;
            training does that before it calls.
        inputs: ``(B, L - L_0, z)``, what :meth:`VARTokenizer.next_inputs` returns. A prefix that ends at a
            whole step is accepted and gives the logits of that prefix.
        """
        steps = self._steps_of(inputs)
        labels = self.check_labels(labels)
        if len(labels) != len(inputs):
            raise InvalidArgumentError(f"{len(labels)} labels for inputs of {len(inputs)} images")
        condition = self.class_emb(labels)
        embedded = [self.start_input(condition)]
        if steps > 1:
            embedded.append(self.embed(inputs, range(1, steps)))
        x = torch.cat(embedded, dim=1)
        lengths = self.schedule.lengths[:steps]
        for block, modulation in zip(self.blocks, self.modulations(condition), strict=True):
            x = block(x, modulation, lengths)
        return self.classify(x, condition)

    def check_labels(self, labels: Tensor) -> Tensor:
        labels = torch.as_tensor(labels, device=self.device)
        if labels.is_floating_point():
            raise InvalidArgumentError(f"labels are whole numbers, got {labels.dtype}")
        if labels.ndim != 1 or not len(labels) or labels.min() < 0 or labels.max() > self.null_label:
            raise InvalidArgumentError(
                f"labels must be a vector of class numbers 0..{self.null_label - 1} "
                f"(or {self.null_label} for no class), got {labels.tolist()}"
            )
        return labels

    def start_input(self, condition: Tensor) -> Tensor:
        """Input of the first step from the class vectors ``(B, C)`` -> ``(B, L_0, C)``."""
        positions = self.pos_start + self.lvl_embed.weight[0] + self.pos_1LC[:, self.schedule.span(0)]
        return condition[:, None] + positions

    def embed(self, inputs: Tensor, steps: Sequence[int]) -> Tensor:
        """Next-scale inputs ``(B, l, z)`` of consecutive steps -> ``(B, l, C)``, scale and position added."""
        schedule = self.schedule
        span = slice(schedule.span(steps[0]).start, schedule.span(steps[-1]).stop)
        levels = [self.lvl_embed.weight[s].expand(schedule.lengths[s], -1) for s in steps]
        embedded: Tensor = self.word_embed(inputs.to(self.device, self.dtype))
        return embedded + (torch.cat(levels) + self.pos_1LC[0, span])

    def modulations(self, condition: Tensor) -> list[Tensor]:
        """What every block is modulated by, ``(B, 1, 6, C)`` each, from the class vectors ``(B, C)``.

        They are the same for all scales. Their projections hold a third of a block's weights, so a generation
        that makes them once reads as much less at every step.
        """
        shared = self.shared_ada_lin(condition) if self.config.shared_aln else condition
        return [cast(Block, block).modulation(shared) for block in self.blocks]

    def classify(self, x: Tensor, condition: Tensor) -> Tensor:
        """Last block's output ``(B, l, C)`` -> logits ``(B, l, V)`` float32."""
        logits: Tensor = self.head(self.head_nm(x, condition))
        return logits.float()

    def _steps_of(self, inputs: Tensor) -> int:
        offsets = self.schedule.offsets
        if inputs.ndim == 3 and inputs.shape[2] == self.config.z_channels:
            length = offsets[1] + inputs.shape[1]
            if length in offsets[1:]:
                return offsets.index(length)
        raise GridError(
            f"inputs must be (B, {offsets[-1] - offsets[1]}, {self.config.z_channels}) for the grids "
            f"{self.schedule}, or a prefix that ends at a whole step; got {tuple(inputs.shape)}"
        )
