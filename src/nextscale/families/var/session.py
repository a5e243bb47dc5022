"""One batch of VAR images in the making: cached transformer passes and the running sum of the latent."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.families.var.transformer import VARTransformer
from nextscale.generation.soft import SoftCodes
from nextscale.guidance.base import CONDITIONAL, UNCONDITIONAL, GuidanceStep
from nextscale.nn.cache import KVCache
from nextscale.nn.quantizer import shrink
from nextscale.scales import ScaleSchedule


class Passes:
    """The transformer's passes for one batch: keys and values of past positions, and the condition.

    Its functions are given the transformer, so that a recording that the transformer keeps does not keep the
    transformer.
    """

    condition: Tensor  # (rows, C)
    modulations: list[Tensor]

    def __init__(self, transformer: VARTransformer, rows: int) -> None:
        config = transformer.config
        self.caches = KVCache.layers(
            len(transformer.blocks),
            rows,
            config.heads,
            transformer.schedule.num_tokens,
            config.embed_dim // config.heads,
            dtype=transformer.dtype,
            device=transformer.device,
        )

    def begin(self, transformer: VARTransformer, labels: Tensor) -> Tensor:
        """Labels ``(rows,)`` to the first step's input ``(rows, l, C)``."""
        self.condition = transformer.class_emb(labels)
        self.modulations = transformer.modulations(self.condition)
        return transformer.start_input(self.condition)

    def step(self, transformer: VARTransformer, x: Tensor) -> Tensor:
        """A step's input to its logits ``(rows, l, V)``, in the dtype of the weights."""
        for block, modulation, cache in zip(transformer.blocks, self.modulations, self.caches, strict=True):
            x = block(x, modulation, cache=cache)
        return transformer.logits(x, self.condition)


class VARSession:
    """Drives the transformer for one batch.

    labels: int64 ``(B,)``. branches: ``"cond"`` and, for classifier-free guidance, ``"uncond"``; every branch
    takes B rows of the batch and of the KV cache. All branches see the same tokens.
    smooth: replace the drawn tokens' codes by :class:`SoftCodes`, for looks rather than for measuring.
    """

    def __init__(
        self,
        transformer: VARTransformer,
        tokenizer: VARTokenizer,
        labels: Tensor,
        branches: tuple[str, ...] = (CONDITIONAL,),
        smooth: SoftCodes | None = None,
    ) -> None:
        self.transformer, self.tokenizer = transformer, tokenizer
        self.branches, self.smooth = branches, smooth
        null = torch.full_like(labels, transformer.null_label)
        rows = torch.cat([{CONDITIONAL: labels, UNCONDITIONAL: null}[b] for b in branches])
        count = len(rows)
        self._recording = transformer.recordings.take(
            transformer, count, _recorded_bytes(transformer, count), lambda: Passes(transformer, count)
        )
        self.passes = Passes(transformer, count) if self._recording is None else self._recording.state
        self.x = self._run(self.passes.begin, rows)  # (rows, l, C), the next step's input
        shape = (len(labels), transformer.config.z_channels, *self.schedule.final)
        self.f_hat = torch.zeros(shape, device=transformer.device)

    def _run(self, function: Callable[[VARTransformer, Tensor], Tensor], given: Tensor) -> Tensor:
        if self._recording is None:
            return function(self.transformer, given)
        return self._recording(partial(function, self.transformer), given)

    @property
    def schedule(self) -> ScaleSchedule:
        return self.transformer.schedule

    @property
    def feature_map(self) -> Tensor:
        return self.f_hat

    def steps(self) -> list[GuidanceStep]:
        return [GuidanceStep(k, self.schedule.grids) for k in range(self.schedule.num_steps)]

    def predict(self, step: GuidanceStep) -> dict[str, Tensor]:
        logits = self._run(self.passes.step, self.x)  # (rows, l, V)
        recording = self._recording
        logits = logits.to(torch.float32, copy=recording is not None)
        if recording is not None and step.index == step.num_steps - 1:
            self.transformer.recordings.give_back(recording)
        return dict(zip(self.branches, logits.chunk(len(self.branches)), strict=True))

    def accept(self, step: GuidanceStep, tokens: Tensor, guided: Tensor) -> None:
        quantizer, schedule = self.tokenizer.quantize, self.schedule
        if self.smooth is None:
            codes = quantizer.lookup(tokens.unflatten(1, step.grid))
        else:
            vectors = self.smooth(guided, step, quantizer.embedding.weight.float())  # (B, l, z)
            codes = vectors.transpose(1, 2).unflatten(2, step.grid)
        # A new sum, not an update in place: a step callback may keep the one it was shown.
        self.f_hat = self.f_hat + quantizer.term(codes, step.index, schedule)
        following = step.index + 1
        if following < schedule.num_steps:
            inputs = shrink(self.f_hat, schedule[following]).flatten(2).transpose(1, 2)  # (B, l, z)
            x = self.transformer.embed(inputs, [following])
            self.x = x.repeat(len(self.branches), 1, 1)


def _recorded_bytes(transformer: VARTransformer, rows: int) -> int:
    """Of keys and values, of all steps' logits, and of what the last step has open at its fullest."""
    config = transformer.config
    tokens, last = config.schedule.num_tokens, config.schedule.lengths[-1]
    cached = 2 * config.depth * config.embed_dim
    numbers = tokens * (cached + config.vocab_size) + last * config.embed_dim * round(4 + config.mlp_ratio)
    return rows * numbers * transformer.dtype.itemsize
