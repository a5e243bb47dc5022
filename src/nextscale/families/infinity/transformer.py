"""Infinity's transformer: two logits for every bit of a scale, given the text and the coarser scales.

Source: Han et al. 2024 (arXiv 2412.04431). Parameter names are the keys of the published files, with their
``block_chunks.a.module.b.`` counted through as ``blocks.n.``.

The residual stream, norms, modulation and head are computed in float32 whatever the dtype of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.families.infinity.conditioning import TextNorm, TextPool, keys_values
from nextscale.families.infinity.schedules import rope_reference
from nextscale.families.text import TextFeatures
from nextscale.kernels import attention, modulated_norm
from nextscale.nn.attention import Rotation, block_causal_attention, grid_rotation, rotate_pairs, split_heads
from nextscale.nn.cache import KVCache
from nextscale.nn.initial import Embedding, normal
from nextscale.nn.linear import Linear
from nextscale.nn.modulation import (
    AdaLinear,
    FeedForward,
    HeadNorm,
    UpcastLinear,
    drop_branches,
    full_precision,
)
from nextscale.scales import ScaleSchedule


@dataclass(frozen=True)
class InfinityTransformerConfig:
    """Sizes of the transformer.

    bits: per token; with spatial patchify four times those of a tokenizer cell.
    text_dim, text_length: channels of the text features, and the most tokens of a prompt.
    pool_heads: learned queries that sum the text up into one vector; their heads are embed_dim / pool_heads
        wide.
    levels: rows of the table of scale embeddings: the most scales a schedule may have.
    drop_path: stochastic depth of the last block in training; earlier blocks get proportionally less.
    """

    bits: int
    depth: int
    embed_dim: int
    num_heads: int
    ffn_dim: int
    text_dim: int = 2048
    text_length: int = 512
    pool_heads: int = 16
    levels: int = 15
    norm_eps: float = 1e-6
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_heads", "pool_heads"):
            if self.embed_dim % getattr(self, name):
                raise InvalidArgumentError(
                    f"embed_dim must be a multiple of {name}, got {self.embed_dim} and {getattr(self, name)}"
                )
        if self.head_dim % 4:
            raise InvalidArgumentError(
                f"heads must have a multiple of 4 channels, for two axes of rotary positions; "
                f"{self.embed_dim} channels in {self.num_heads} heads make {self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _size(bits: int, depth: int, embed_dim: int, num_heads: int) -> InfinityTransformerConfig:
    # Python rounds halves to even, as the widths of layer32 and layer48 need.
    ffn_dim = 256 * round(4 * embed_dim / 256)
    pool_heads = 2048 // (64 if embed_dim > 4096 else 128)
    return InfinityTransformerConfig(bits, depth, embed_dim, num_heads, ffn_dim, pool_heads=pool_heads)


# By the official names, with the bits of the tokenizer each was trained with. 2b, 8b and layer12 (125M) are
# released.
SIZES: MappingProxyType[str, InfinityTransformerConfig] = MappingProxyType(
    {
        "infinity_layer12": _size(16, 12, 768, 8),
        "infinity_layer16": _size(32, 16, 1152, 12),
        "infinity_layer24": _size(32, 24, 1536, 16),
        "infinity_layer32": _size(32, 32, 2080, 20),
        "infinity_layer40": _size(32, 40, 2688, 24),
        "infinity_layer48": _size(32, 48, 3360, 28),
        "infinity_2b": _size(32, 32, 2048, 16),
        "infinity_8b": _size(56, 40, 3584, 28),
        "infinity_20b": _size(32, 58, 4608, 36),
    }
)


class Memory(NamedTuple):
    """One block's view of the text: keys and values ``(R, H, T, d)``, and their mask if rows differ."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None  # bool (R, 1, 1, T)


@dataclass(frozen=True)
class TextCondition:
    """What the transformer makes of R rows of text, once per generation.

    pooled: float32 ``(R, C)``. memory: ``(R, T, C)``, what cross-attention reads.
    mask: bool ``(R, 1, 1, T)``, or ``None`` where all of it is text.
    modulation: float32 ``(R, 1, 6, C)``, shared by the blocks.
    """

    pooled: Tensor
    memory: Tensor
    mask: Tensor | None
    modulation: Tensor


class SelfAttention(nn.Module):
    """Attention over the scales so far: unit queries and keys, a temperature per head, rotary positions."""

    def __init__(self, config: InfinityTransformerConfig) -> None:
        super().__init__()
        dim, self.heads = config.embed_dim, config.num_heads
        self.mat_qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4)))

    def forward(
        self, x: Tensor, rotation: Rotation, lengths: Sequence[int] | None, cache: KVCache | None
    ) -> Tensor:
        """x ``(R, L, C)`` -> same; lengths: of the steps in x, or ``None`` if x is one step."""
        batch, length, dim = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = split_heads(self.mat_qkv(x, bias=bias), self.heads, self.scale_mul_1H11)
        q, k = rotate_pairs(q, rotation).to(v.dtype), rotate_pairs(k, rotation).to(v.dtype)
        if cache is not None:
            k, v = cache.append(k, v)
        if lengths is None:
            out = attention(q, k, v, scale=1.0)
        else:
            out = block_causal_attention(q, k, v, lengths, scale=1.0)
        result: Tensor = self.proj(out.transpose(1, 2).reshape(batch, length, dim))
        return result


class CrossAttention(nn.Module):
    """Attention over the text."""

    def __init__(self, config: InfinityTransformerConfig) -> None:
        super().__init__()
        dim, self.heads = config.embed_dim, config.num_heads
        self.mat_q = Linear(dim, dim)
        self.mat_kv = Linear(dim, 2 * dim, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)

    def read(self, text: TextCondition) -> Memory:
        """This layer's keys and values of the text; they are the same at every step."""
        keys, values = keys_values(text.memory, self.mat_kv, self.v_bias, self.heads)
        return Memory(keys, values, text.mask)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        batch, length, dim = x.shape
        q = self.mat_q(x).view(batch, length, self.heads, -1).transpose(1, 2)  # (B, H, L, d)
        out = attention(q, memory.keys, memory.values, mask=memory.mask)
        result: Tensor = self.proj(out.transpose(1, 2).reshape(batch, length, dim))
        return result


class Block(nn.Module):
    """Self-attention and feed-forward, modulated by the text as a whole, and cross-attention in between."""

    def __init__(self, config: InfinityTransformerConfig, drop_path: float) -> None:
        super().__init__()
        dim, self.eps = config.embed_dim, config.norm_eps
        self.ca_norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.sa = SelfAttention(config)
        self.ca = CrossAttention(config)
        self.ffn = FeedForward(dim, config.ffn_dim)
        self.ada_gss = normal(1, 1, 6, dim, std=1 / math.sqrt(dim))
        self.drop_path = drop_path

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        memory: Memory,
        rotation: Rotation,
        lengths: Sequence[int] | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """The stream x, float32 ``(B, L, C)``; modulation float32 ``(B, 1, 6, C)``."""
        gate1, gate2, scale1, scale2, shift1, shift2 = (self.ada_gss + modulation).unbind(2)  # each (B, 1, C)
        h = self.sa(self._modulated(x, scale1, shift1), rotation, lengths, cache)
        x = x + drop_branches(h * gate1, self.drop_path, self.training)
        x = x + self.ca(self._ca_normed(x), memory)
        h = self.ffn(self._modulated(x, scale2, shift2))
        return x + drop_branches(h * gate2, self.drop_path, self.training)

    def _modulated(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return modulated_norm(x, scale, shift, eps=self.eps, dtype=self.ada_gss.dtype)

    def _ca_normed(self, x: Tensor) -> Tensor:
        norm = self.ca_norm
        h = F.layer_norm(x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
        return h.to(self.ada_gss.dtype)


class InfinityTransformer(nn.Module):
    """Text and coarser scales in, bit logits out."""

    def __init__(self, config: InfinityTransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.cfg_uncond = normal(config.text_length, config.text_dim, std=1 / math.sqrt(config.text_dim))
        self.pos_start = normal(1, 1, dim, std=1 / math.sqrt(3 * dim))
        self.text_norm = TextNorm(config.text_dim, config.norm_eps)
        self.text_proj_for_sos = TextPool(config.text_dim, dim, config.pool_heads)
        self.text_proj_for_ca = nn.Sequential(
            Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), Linear(dim, dim)
        )
        self.lvl_embed = Embedding(config.levels, dim)
        self.word_embed = Linear(config.bits, dim)
        self.shared_ada_lin = AdaLinear(dim, 6)
        drop = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, q) for q in drop)
        self.head_nm = HeadNorm(dim, config.norm_eps)
        self.head = UpcastLinear(dim, 2 * config.bits)

    @property
    def dtype(self) -> torch.dtype:
        return self.word_embed.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.word_embed.weight.device

    def forward(self, text: TextFeatures, inputs: Tensor, schedule: ScaleSchedule) -> Tensor:
        """Teacher forcing: logits of every position, float32 ``(B, L, 2 * bits)``.

        text: features of the prompts; nothing is dropped here, training does that before it calls (see
            :meth:`unconditional`).
        inputs: ``(B, L - L_0, bits)``, what the tokenizer's ``next_inputs`` returns. A prefix that ends at a
            whole step is accepted and gives the logits of that prefix.

        Entries 2k and 2k + 1 of the last axis are the logits of bit k being 0 and 1.
        """
        steps = self._steps_of(inputs, schedule)
        if len(text) != len(inputs):
            raise InvalidArgumentError(f"{len(text)} prompts for inputs of {len(inputs)} images")
        condition = self.encode_text(text)
        x = self.start_input(condition)
        if steps > 1:
            x = torch.cat([x, self.embed(inputs, range(1, steps), schedule)], dim=1)
        rotation, lengths = self.rotation(schedule).part(slice(x.shape[1])), schedule.lengths[:steps]
        for block, memory in zip(self.blocks, self.memories(condition), strict=True):
            x = block(x, condition.modulation, memory, rotation, lengths)
        return self.classify(x, condition.pooled)

    # ------------------------------------------------------------------ text

    def encode_text(self, text: TextFeatures) -> TextCondition:
        """Conditioning by R rows of text.

        Raises InvalidArgumentError for features of another width, or more tokens than the model takes.
        """
        self.check_text(text)
        text = text.trim().to(self.device)
        rows = text.mask[:, None, None]  # (R, 1, 1, T)
        mask = None if bool(rows.all()) else rows
        # What is no text may be anything; NaN would pass a mask, since 0 times NaN is NaN.
        features = text.features.where(text.mask[..., None], 0)
        with full_precision(self.device):
            normed = self.text_norm(features)
        normed = normed.to(self.dtype)
        pooled = self.text_proj_for_sos(normed, mask).float()
        memory = self.text_proj_for_ca(normed)
        with full_precision(self.device):
            modulation = self.shared_ada_lin(pooled)
        return TextCondition(pooled, memory, mask, modulation)

    def memories(self, condition: TextCondition) -> list[Memory]:
        """Every block's keys and values of the text."""
        return [block.ca.read(condition) for block in self.blocks]  # type: ignore[operator, union-attr]

    def unconditional(self, text: TextFeatures) -> TextFeatures:
        """Features that stand for no text: every prompt's n tokens replaced by the first n learned rows.

        Same shape, mask and device as the text's, so the two can be mixed row by row.
        """
        self.check_text(text)
        index = (text.mask.cumsum(1) - 1).clamp(min=0).to(self.device)
        features = self.cfg_uncond[index].to(text.features)
        return TextFeatures(features, text.mask)

    def check_text(self, text: TextFeatures) -> None:
        if text.width != self.config.text_dim:
            raise InvalidArgumentError(
                f"this model takes text features of {self.config.text_dim} channels, got {text.width}; they "
                f"must come from the encoder that it was trained with"
            )
        longest = max(text.lengths)
        if longest > self.config.text_length:
            raise InvalidArgumentError(
                f"prompt {text.lengths.index(longest)} has {longest} text tokens, and this model takes "
                f"{self.config.text_length}; cut the features"
            )

    # ------------------------------------------------------------------ tokens

    def start_input(self, condition: TextCondition) -> Tensor:
        """Input of the first step, one position: float32 ``(R, 1, C)``."""
        return condition.pooled[:, None] + self.pos_start.float() + self.lvl_embed.weight[0].float()

    def embed(self, inputs: Tensor, steps: Sequence[int], schedule: ScaleSchedule) -> Tensor:
        """Next-scale inputs ``(B, l, bits)`` of consecutive steps -> float32 ``(B, l, C)``, scale added."""
        levels = [self.lvl_embed.weight[s].expand(schedule.lengths[s], -1) for s in steps]
        embedded: Tensor = self.word_embed(inputs.to(self.device, self.dtype))
        return embedded.float() + torch.cat(levels).float()

    def rotation(self, schedule: ScaleSchedule) -> Rotation:
        """Rotary tables of a schedule, in the coordinates of its ratio's largest published one."""
        return grid_rotation(schedule, rope_reference(schedule.final), self.config.head_dim, self.device)

    def classify(self, x: Tensor, pooled: Tensor) -> Tensor:
        """Last block's output ``(B, l, C)`` -> logits ``(B, l, 2 * bits)`` float32."""
        with full_precision(x.device):
            logits: Tensor = self.head(self.head_nm(x.float(), pooled))
        return logits

    def check_schedule(self, schedule: ScaleSchedule) -> None:
        """Raises GridError for a schedule with a first scale of several tokens, or too many scales."""
        if schedule.lengths[0] != 1 or schedule.num_steps > self.config.levels:
            raise GridError(
                f"this model takes schedules that begin with 1x1 and have at most {self.config.levels} "
                f"scales, got {schedule.num_steps}: {schedule}"
            )

    def _steps_of(self, inputs: Tensor, schedule: ScaleSchedule) -> int:
        self.check_schedule(schedule)
        offsets = schedule.offsets
        if inputs.ndim == 3 and inputs.shape[2] == self.config.bits:
            length = offsets[1] + inputs.shape[1]
            if length in offsets[1:]:
                return offsets.index(length)
        raise GridError(
            f"inputs must be (B, {offsets[-1] - offsets[1]}, {self.config.bits}) for the grids {schedule}, "
            f"or a prefix that ends at a whole step; got {tuple(inputs.shape)}"
        )
