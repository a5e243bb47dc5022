"""One batch of Infinity images in the making: cached transformer passes and the running sum of the codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nextscale.families.infinity.bits import to_cells
from nextscale.families.infinity.request import ON_LOGITS
from nextscale.families.infinity.tokenizer import InfinityTokenizer
from nextscale.families.infinity.transformer import InfinityTransformer, Memory
from nextscale.families.text import TextFeatures
from nextscale.guidance.base import CONDITIONAL, UNCONDITIONAL, GuidanceStep
from nextscale.guidance.cfg import combine
from nextscale.guidance.schedules import StepStrength
from nextscale.nn.cache import KVCache
from nextscale.scales import ScaleSchedule


class InfinitySession:
    """Drives the transformer for one batch of B prompts over the transformer's grids ``schedule``.

    negative: B rows of text to steer away from; ``None`` takes the learned rows for no text.
    scales: classifier-free guidance s of every step, or one for each prompt at every step, 1 for none;
        ``None`` for no guidance at all. If any is another number, the conditional and the unconditional half
        both take B rows of the batch and of the caches, up to the last step that needs them.
    layers: where guidance acts. 0: on the logits, which are then delivered for both branches, and combining
        them is left to the caller. -k: on the output of the k-th last block, here; both halves go on with
        the mixture, but each with its own text and cache.
    stop_after: how many steps are made; ``None`` for all.
    """

    def __init__(
        self,
        transformer: InfinityTransformer,
        tokenizer: InfinityTokenizer,
        schedule: ScaleSchedule,
        text: TextFeatures,
        *,
        negative: TextFeatures | None = None,
        scales: Sequence[StepStrength] | None = None,
        layers: Sequence[int] = (ON_LOGITS,),
        stop_after: int | None = None,
    ) -> None:
        transformer.check_schedule(schedule)
        self.transformer, self.tokenizer, self._schedule = transformer, tokenizer, schedule
        self.num_steps = schedule.num_steps if stop_after is None else stop_after
        self.scales: tuple[StepStrength, ...] = (
            (1.0,) * schedule.num_steps if scales is None else tuple(scales)
        )
        self.on_logits = ON_LOGITS in layers
        self.mixed = {transformer.config.depth + k for k in layers if k != ON_LOGITS}  # blocks, from 0
        guided = [k for k in range(self.num_steps) if self.scales[k] != 1]
        self.last_guided = guided[-1] if guided else -1
        self.batch = len(text)

        text = text.trim()
        if guided:
            other = transformer.unconditional(text) if negative is None else negative.trim()
            text = TextFeatures.cat([text, other.to(text.features.device)])
        condition = transformer.encode_text(text)
        self.pooled, self.modulation = condition.pooled, condition.modulation
        self.memories = transformer.memories(condition)
        self.rotation = transformer.rotation(schedule)
        config = transformer.config
        self.caches = KVCache.layers(
            len(transformer.blocks),
            len(text),
            config.num_heads,
            schedule.offsets[self.num_steps - 1],
            config.head_dim,
            dtype=transformer.dtype,
            device=transformer.device,
        )
        self.x = transformer.start_input(condition)  # (rows, l, C), the next step's input
        self.cells = tokenizer.cells(schedule)
        shape = (self.batch, tokenizer.config.bits, *self.cells.final)
        self.f_hat = torch.zeros(shape, device=transformer.device)

    @property
    def schedule(self) -> ScaleSchedule:
        return self._schedule

    @property
    def feature_map(self) -> Tensor:
        return self.f_hat

    def steps(self) -> list[GuidanceStep]:
        return [GuidanceStep(k, self.schedule.grids) for k in range(self.num_steps)]

    def predict(self, step: GuidanceStep) -> dict[str, Tensor]:
        """Float32 bit logits ``(B, l, 2D)``: of both branches where guidance acts on them, else of one."""
        scale = self.scales[step.index]
        x, rotation = self.x, self.rotation.part(self.schedule.span(step.index))
        parts = zip(self.transformer.blocks, self.memories, self.caches, strict=True)
        for n, (block, memory, cache) in enumerate(parts):
            x = block(x, self.modulation, memory, rotation, cache=cache)
            if n in self.mixed and scale != 1:
                cond, uncond = x.chunk(2)
                mixture = combine(cond, uncond, scale, "interpolate")
                x = mixture.repeat(2, 1, 1)
        names = [CONDITIONAL, UNCONDITIONAL] if self.on_logits and scale != 1 else [CONDITIONAL]
        rows = slice(len(names) * self.batch)
        logits = self.transformer.classify(x[rows], self.pooled[rows])  # (rows, l, 2D)
        return dict(zip(names, logits.chunk(len(names)), strict=True))

    def accept(self, step: GuidanceStep, tokens: Tensor, guided: Tensor) -> None:
        """Take the bits ``(B, l, D)`` of this step."""
        tokenizer, following = self.tokenizer, step.index + 1
        bits = tokens.unflatten(1, step.grid)  # (B, h, w, D)
        bits = to_cells(bits) if tokenizer.config.patchify else bits
        # A new sum, not an update in place: a step callback may keep the one it was shown.
        self.f_hat = self.f_hat + tokenizer.term(bits, self.cells.final)
        if following < self.num_steps:
            if step.index == self.last_guided:
                self._drop_unconditional()
            inputs = tokenizer.input_map(self.f_hat, self.schedule[following])  # (B, l, D)
            x = self.transformer.embed(inputs, [following], self.schedule)
            self.x = x.repeat(len(self.pooled) // self.batch, 1, 1)

    def _drop_unconditional(self) -> None:
        """No later step is guided, so the unconditional rows need not be computed any more."""
        rows = slice(self.batch)
        self.pooled, self.modulation = self.pooled[rows], self.modulation[rows]
        self.memories = [
            Memory(m.keys[rows], m.values[rows], None if m.mask is None else m.mask[rows])
            for m in self.memories
        ]
        for cache in self.caches:
            cache.keys, cache.values = cache.keys[rows], cache.values[rows]
