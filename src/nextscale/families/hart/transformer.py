"""HART's transformer: logits for all tokens of a scale, given a prompt's features and the coarser scales.

Source: Tang et al. 2024 (arXiv 2410.10812). Parameter names are the keys of the published files. The prompt's
tokens are the first segment of the sequence and stand in for the first scale: the output at the last of them
predicts its single token. There is no mask among them, so padding takes part like every other token.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.families.hart.diffusion import ResidualDiffusion
from nextscale.families.hart.rotary import Rotation, map_positions, rotate
from nextscale.families.text import TextFeatures
from nextscale.kernels import attention
from nextscale.nn.attention import level_mask, split_heads
from nextscale.nn.cache import KVCache
from nextscale.nn.initial import Embedding, normal
from nextscale.nn.linear import Linear
from nextscale.nn.modulation import AdaLinear
from nextscale.nn.timestep import TimestepEmbedding
from nextscale.scales import PRESETS, Grid, ScaleSchedule

POOLINGS = ("max", "avg")


@dataclass(frozen=True)
class HARTTransformerConfig:
    """Sizes of the transformer; the defaults are those of the published 0.7B model for 1024 pixels.

    context_token, context_dim: tokens and channels of a prompt's features.
    mlp_hidden: width of the gated feed-forward.
    disable_aln, shared_aln: what modulates the blocks. Both: a table per block plus the prompt's mean;
        the first alone: nothing; neither: a projection per block of the prompt's pooled features.
    pooling: of that last form, ``"max"`` over all positions or ``"avg"`` over the valid ones.
    use_timestep_embed: scale numbers as sinusoids through a small MLP instead of a table.
    use_context_norm: RMS norm of the features before they are projected.
    attn_l2_norm: normalised queries and keys with a learned temperature per head.
    diff_width, diff_depth, num_sampling_steps: the residual diffusion head; see
        :class:`~nextscale.families.hart.diffusion.ResidualDiffusion`.
    """

    vocab_size: int = 4096
    z_channels: int = 32
    context_token: int = 300
    context_dim: int = 1536
    depth: int = 24
    embed_dim: int = 1536
    num_heads: int = 24
    mlp_hidden: int = 4096
    norm_eps: float = 1e-6
    shared_aln: bool = True
    disable_aln: bool = True
    use_timestep_embed: bool = True
    use_context_norm: bool = True
    attn_l2_norm: bool = False
    pooling: str = "max"
    diff_width: int = 1024
    diff_depth: int = 6
    num_sampling_steps: str = "8"
    patch_nums: tuple[int | Grid, ...] = PRESETS["var-1024"]

    def __post_init__(self) -> None:
        if self.embed_dim % (4 * self.num_heads):
            raise InvalidArgumentError(
                f"embed_dim must be a multiple of 4 num_heads (rows and columns rotate pairs of channels), "
                f"got {self.embed_dim} and {self.num_heads}"
            )
        if self.pooling not in POOLINGS:
            raise InvalidArgumentError(f"pooling must be {' or '.join(POOLINGS)}, got {self.pooling!r}")
        sides = tuple(tuple(v) if isinstance(v, list) else v for v in self.patch_nums)
        object.__setattr__(self, "patch_nums", sides)
        if self.schedule.num_steps < 2 or self.schedule[0] != (1, 1):
            raise GridError(f"HART takes at least two grids, the first 1x1, got {self.schedule}")

    @property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.from_sides(self.patch_nums)

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def sequence_length(self) -> int:
        """Text tokens and those of every scale but the first, whose place they take."""
        return self.context_token + self.schedule.num_tokens - 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class RMSNorm(nn.Module):
    """Divided by the root of the mean square, in float32, then times a weight in the input's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        return h.to(x.dtype) * self.weight


class SelfAttention(nn.Module):
    """Multi-head attention with rotated queries and keys; keys have no bias."""

    def __init__(self, config: HARTTransformerConfig) -> None:
        super().__init__()
        dim, self.heads = config.embed_dim, config.num_heads
        self.qkv_proj = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)
        self.scale_mul_1H11: nn.Parameter | None = None
        if config.attn_l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4)))

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """x ``(B, L, C)`` -> the same shape."""
        batch, length, dim = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = self.qkv_proj(x.to(bias.dtype), bias=bias)
        q, k, v = split_heads(qkv, self.heads, self.scale_mul_1H11)
        scale = 0.25 / math.sqrt(dim // self.heads) if self.scale_mul_1H11 is None else 1.0
        q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.append(k, v)
        out = attention(q, k, v, mask=mask, scale=scale)
        result: Tensor = self.proj(out.transpose(1, 2).reshape(batch, length, dim))
        return result


class GatedFeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = Linear(dim, hidden, bias=False)
        self.up_proj = Linear(dim, hidden, bias=False)
        self.down_proj = Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.up_proj.weight.dtype)
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Block(nn.Module):
    """Attention and feed-forward behind one shared norm, each scaled, shifted and gated by the prompt.

    The sum they add to, the norm and the modulation are float32 whatever the dtype of the weights, as in the
    published sampler, which runs float32 weights under float16 autocast.
    """

    def __init__(self, config: HARTTransformerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.ln_wo_grad = RMSNorm(dim, config.norm_eps)  # the published name; the weight is learned
        self.attn = SelfAttention(config)
        self.ffn = GatedFeedForward(dim, config.mlp_hidden)
        if not config.disable_aln:
            self.ada_lin = AdaLinear(dim, 6)
        elif config.shared_aln:
            self.scale_shift_table = normal(6, dim, std=1 / math.sqrt(dim))

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        condition: Tensor | None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """x float32 ``(B, L, C)``; condition float32 ``(B, C)``, or None where nothing modulates."""
        if condition is None:
            x = x + self.attn(self.ln_wo_grad(x), rotation, mask, cache)
            return x + self.ffn(self.ln_wo_grad(x))
        if hasattr(self, "ada_lin"):
            modulation = self.ada_lin(condition)
        else:
            modulation = (self.scale_shift_table + condition[:, None])[:, None]
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unbind(2)  # each (B, 1, C)
        x = x + gate1 * self.attn(self.ln_wo_grad(x) * (1 + scale1) + shift1, rotation, mask, cache)
        return x + gate2 * self.ffn(self.ln_wo_grad(x) * (1 + scale2) + shift2)


class HeadNorm(nn.Module):
    """The norm before the classifier, scaled and shifted by the prompt's largest projected features."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.ln_wo_grad = RMSNorm(dim, eps)
        self.ada_lin = AdaLinear(dim, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition).unbind(2)
        return self.ln_wo_grad(x) * (1 + scale) + shift


class Condition(NamedTuple):
    """A batch of prompts as the transformer sees them.

    tokens: projected features, float32 ``(B, T, C)``. positions: int64 ``(B, T)``. block: what modulates the
    blocks, float32 ``(B, C)`` or None. head: what modulates the head, float32 ``(B, C)``.
    """

    tokens: Tensor
    positions: Tensor
    block: Tensor | None
    head: Tensor


class HARTTransformer(nn.Module):
    """Prompts and coarser scales in, token logits out; with them lies the residual head, ``diffloss``."""

    def __init__(self, config: HARTTransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.word_embed = Linear(config.z_channels, dim)
        self.context_embed = Linear(config.context_dim, dim)
        if config.use_context_norm:
            self.context_norm = RMSNorm(config.context_dim, config.norm_eps)
        self.lvl_embed: TimestepEmbedding | nn.Embedding = (
            TimestepEmbedding(dim) if config.use_timestep_embed else Embedding(config.schedule.num_steps, dim)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(dim, config.norm_eps)
        self.head = Linear(dim, config.vocab_size)
        self.decoder_norm = RMSNorm(dim, config.norm_eps)
        self.diffloss = ResidualDiffusion(
            config.z_channels, dim, config.diff_width, config.diff_depth, config.num_sampling_steps
        )

    @property
    def schedule(self) -> ScaleSchedule:
        return self.config.schedule

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    # ------------------------------------------------------------------ the prompt

    def check_text(self, text: TextFeatures) -> None:
        """Raises InvalidArgumentError unless features are ``(B, context_token, context_dim)``."""
        wanted = (self.config.context_token, self.config.context_dim)
        if tuple(text.features.shape[1:]) != wanted:
            raise InvalidArgumentError(
                f"this model takes text features (B, {wanted[0]}, {wanted[1]}), padding included, "
                f"got {tuple(text.features.shape)}; they are the last hidden states of its language model"
            )

    def null_text(self, text: TextFeatures) -> TextFeatures:
        """The unconditional counterpart: zeros, of which only the first position counts as valid."""
        mask = torch.zeros_like(text.mask)
        mask[:, 0] = True
        return TextFeatures(torch.zeros_like(text.features), mask)

    def condition(self, text: TextFeatures) -> Condition:
        """Prompts' features ``(B, T, W)``, padding included, to what the layers need of them."""
        self.check_text(text)
        text = text.to(self.device)
        features = text.features.to(self.dtype)
        if self.config.use_context_norm:
            features = self.context_norm(features)
        tokens = self.context_embed(features).float()
        # Positions count valid tokens: padding in front has -1, padding behind repeats the last number.
        positions = text.mask.long().cumsum(1) - 1
        greatest = tokens.amax(1)  # over padding too, as published
        return Condition(tokens, positions, self._block_condition(tokens, text.mask, greatest), greatest)

    def _block_condition(self, tokens: Tensor, mask: Tensor, greatest: Tensor) -> Tensor | None:
        config = self.config
        if config.disable_aln and not config.shared_aln:
            return None
        if not config.disable_aln and config.pooling == "max":
            return greatest
        valid = mask[..., None].to(tokens.dtype)
        return (tokens * valid).sum(1) / valid.sum(1)

    # ------------------------------------------------------------------ the parts of a pass

    def level(self, step: int) -> Tensor:
        """The vector ``(C,)`` float32 that marks the tokens of a scale; the text has that of scale 0."""
        vector: Tensor = self.lvl_embed(torch.full((), step, device=self.device))  # filled there, not sent
        return vector.float()

    def embed_text(self, condition: Condition) -> tuple[Tensor, Rotation]:
        """The first segment of the sequence ``(B, T, C)``, and its positions."""
        return condition.tokens + self.level(0), Rotation.text(condition.positions, self.config.head_dim)

    def embed_map(self, inputs: Tensor, step: int) -> Tensor:
        """Tokens of a scale, whole or in part, ``(B, l, z)`` -> float32 ``(B, l, C)``."""
        embedded: Tensor = self.word_embed(inputs.to(self.device, self.dtype))
        return embedded.float() + self.level(step)

    def map_rotation(self, condition: Condition, step: int, cells: Tensor | None = None) -> Rotation:
        """The positions of a scale; cells: int64 ``(B, l)``, the row-major cells wanted, None for all."""
        schedule = self.schedule
        places = map_positions(schedule[step], schedule.final, condition.positions[:, -1], cells)
        return Rotation.maps(places, self.config.head_dim)

    def classify(self, x: Tensor, condition: Condition) -> Tensor:
        """Last block's output ``(B, l, C)`` -> logits ``(B, l, V)`` float32."""
        logits: Tensor = self.head(self.head_nm(x, condition.head).to(self.dtype))
        return logits.float()

    def residual_condition(self, x: Tensor, codes: Tensor) -> Tensor:
        """What the residual head sees: last block's output ``(B, l, C)`` and the codes drawn ``(B, l, z)``.

        The codes are those of the drawn tokens, also where mixtures are shown. Returns ``(B, l, C)``.
        """
        result: Tensor = self.decoder_norm(x + self.word_embed(codes.to(self.device, self.dtype)))
        return result

    # ------------------------------------------------------------------ teacher forcing

    def forward(self, text: TextFeatures, inputs: Tensor, kept: Tensor | None = None) -> Tensor:
        """Teacher forcing: logits of every position, float32 ``(B, L, V)``, or fewer with ``kept``.

        text: features of B prompts; dropping the condition is zeroing features, which training does before.
        inputs: ``(B, L - 1, z)``, what :meth:`HARTTokenizer.next_inputs` returns.
        kept: int64 ``(B, m)``, the cells of the last scale that take part, row-major; None for all of them.
        """
        hidden, condition = self.hidden(text, inputs, kept)
        return self.classify(hidden[:, self.config.context_token - 1 :], condition)

    def hidden(
        self, text: TextFeatures, inputs: Tensor, kept: Tensor | None = None
    ) -> tuple[Tensor, Condition]:
        """The last block's output for the whole sequence ``(B, T + L - 1, C)``, or shorter; see forward."""
        schedule, last = self.schedule, self.schedule.num_steps - 1
        self._check_inputs(text, inputs, kept)
        condition = self.condition(text)
        maps = list(inputs.split(list(schedule.lengths[1:]), dim=1))
        if kept is not None:
            kept = kept.to(inputs.device)
            maps[-1] = maps[-1].gather(1, kept[..., None].expand(-1, -1, inputs.shape[2]))
            kept = kept.to(self.device)
        x, rotation = self.embed_text(condition)
        parts, turns = [x], [rotation]
        for step, values in enumerate(maps, start=1):
            parts.append(self.embed_map(values, step))
            turns.append(self.map_rotation(condition, step, kept if step == last else None))
        mask = level_mask([p.shape[1] for p in parts], device=self.device)
        x, rotation = torch.cat(parts, 1), Rotation.cat(turns)
        for block in self.blocks:
            x = block(x, rotation, condition.block, mask)
        return x, condition

    def _check_inputs(self, text: TextFeatures, inputs: Tensor, kept: Tensor | None) -> None:
        wanted = (len(text), self.schedule.num_tokens - 1, self.config.z_channels)
        if tuple(inputs.shape) != wanted:
            raise GridError(
                f"inputs must be {wanted} for {len(text)} prompts and the grids {self.schedule}, "
                f"got {tuple(inputs.shape)}"
            )
        cells = self.schedule.lengths[-1]
        if kept is not None and (
            kept.ndim != 2
            or len(kept) != len(text)
            or kept.is_floating_point()
            or not kept.numel()
            or not 0 <= int(kept.min()) <= int(kept.max()) < cells
        ):
            raise InvalidArgumentError(
                f"kept must be whole numbers ({len(text)}, m) in 0..{cells - 1}, cells of the last scale, "
                f"got {kept.dtype} {tuple(kept.shape)}"
            )
