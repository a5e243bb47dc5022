"""One batch of VAR images in the making: cached transformer passes and the running sum of the latent."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.families.var.transformer import VARTransformer
from nextscale.generation.soft import SoftCodes
from nextscale.guidance.base import CONDITIONAL, UNCONDITIONAL, GuidanceStep
from nextscale.nn.cache import KVCache
from nextscale.nn.quantizer import shrink
from nextscale.scales import ScaleSchedule


class VARSession:
    """Drives the transformer for one batch.

    labels: int64 ``(B,)``. branches: ``"cond"`` and, for classifier-free guidance, ``"uncond"``; every branch
    takes B rows of the batch and of the KV cache. All branches see the same tokens.
    smooth: replace the drawn tokens' codes by :class:`SoftCodes`, for looks rather than for measuring.
    given: for how many first steps the tokens are given, not drawn; they are never replaced.
    stop_after: how many steps are made; ``None`` for all.
    """

    def __init__(
        self,
        transformer: VARTransformer,
        tokenizer: VARTokenizer,
        labels: Tensor,
        branches: tuple[str, ...] = (CONDITIONAL,),
        smooth: SoftCodes | None = None,
        *,
        given: int = 0,
        stop_after: int | None = None,
    ) -> None:
        self.transformer, self.tokenizer = transformer, tokenizer
        self.branches, self.smooth, self.given = branches, smooth, given
        self.num_steps = self.schedule.num_steps if stop_after is None else stop_after
        config = transformer.config
        null = torch.full_like(labels, transformer.null_label)
        rows = torch.cat([{CONDITIONAL: labels, UNCONDITIONAL: null}[b] for b in branches])
        self.condition = transformer.class_emb(rows)  # (rows, C)
        self.modulations = transformer.modulations(self.condition)
        self.caches = KVCache.layers(
            len(transformer.blocks),
            len(rows),
            config.heads,
            self.schedule.offsets[self.num_steps - 1],
            config.embed_dim // config.heads,
            dtype=transformer.dtype,
            device=transformer.device,
        )
        self.x = transformer.start_input(self.condition)  # (rows, l, C), the next step's input
        shape = (len(labels), config.z_channels, *self.schedule.final)
        self.f_hat = torch.zeros(shape, device=transformer.device)

    @property
    def schedule(self) -> ScaleSchedule:
        return self.transformer.schedule

    @property
    def feature_map(self) -> Tensor:
        return self.f_hat

    def steps(self) -> list[GuidanceStep]:
        return [GuidanceStep(k, self.schedule.grids) for k in range(self.num_steps)]

    def predict(self, step: GuidanceStep) -> dict[str, Tensor]:
        x = self.x
        parts = zip(self.transformer.blocks, self.modulations, self.caches, strict=True)
        for block, modulation, cache in parts:
            x = block(x, modulation, cache=cache)
        logits = self.transformer.classify(x, self.condition)  # (rows, l, V)
        return dict(zip(self.branches, logits.chunk(len(self.branches)), strict=True))

    def accept(self, step: GuidanceStep, tokens: Tensor, guided: Tensor) -> None:
        quantizer, schedule = self.tokenizer.quantize, self.schedule
        if self.smooth is None or step.index < self.given:
            codes = quantizer.lookup(tokens.unflatten(1, step.grid))
        else:
            vectors = self.smooth(guided, step, quantizer.embedding.weight.float())  # (B, l, z)
            codes = vectors.transpose(1, 2).unflatten(2, step.grid)
        # A new sum, not an update in place: a step callback may keep the one it was shown.
        self.f_hat = self.f_hat + quantizer.term(codes, step.index, schedule)
        following = step.index + 1
        if following < self.num_steps:
            inputs = shrink(self.f_hat, schedule[following]).flatten(2).transpose(1, 2)  # (B, l, z)
            x = self.transformer.embed(inputs, [following])
            self.x = x.repeat(len(self.branches), 1, 1)
