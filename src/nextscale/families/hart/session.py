"""One batch of HART images in the making: cached transformer passes, the running sum, and the residual."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.families.hart.rotary import Rotation
from nextscale.families.hart.tokenizer import HARTTokenizer
from nextscale.families.hart.transformer import HARTTransformer
from nextscale.families.text import TextFeatures
from nextscale.generation.noise import Noise, Stream
from nextscale.guidance.base import CONDITIONAL, UNCONDITIONAL, GuidanceStep
from nextscale.nn.cache import KVCache
from nextscale.nn.quantizer import shrink
from nextscale.scales import ScaleSchedule

Mixture = Callable[[Tensor, GuidanceStep, Tensor], Tensor]


@dataclass(frozen=True)
class HARTNoise:
    """What a batch draws besides its tokens, laid out over the n cells of the last scale.

    order: int64 ``(B, n)``, a permutation per image; when the last scale is predicted in parts, the cells at
        its front come last.
    residual: float32 ``(k, B, n, z)``, what :meth:`ResidualDiffusion.sample` takes. A cell has the same noise
        whichever part it is predicted in.
    """

    order: Tensor
    residual: Tensor

    @classmethod
    def draw(cls, noise: Noise, transformer: HARTTransformer) -> HARTNoise:
        """Draw both from the images' numbers; cells come in the order of their hashes."""
        last, cells = transformer.schedule.num_steps - 1, transformer.schedule.lengths[-1]
        order = noise.keys(Stream.ORDER, last, cells).argsort(dim=1, stable=True)
        return cls(order, transformer.diffloss.draw_noise(noise, last, cells))


class HARTSession:
    """Drives the transformer and the residual head for one batch.

    text: features of B prompts, padding included. branches: ``"cond"`` and, for classifier-free guidance,
        ``"uncond"``; every branch takes B rows of the batch and of the KV cache. All branches see the same
        tokens.
    noise: the permutations and the diffusion noise of the images.
    guidance: t of ``(1 + t) cond - t uncond`` in the residual head, or one for each image; used if there is a
        branch ``"uncond"``.
    smooth: replaces the codes of drawn tokens; see :class:`~nextscale.generation.soft.SoftCodes`. The
        residual head is told the drawn ones nevertheless.
    residual: whether the residual is drawn, or the codes are all there is.
    mask_iterations: in how many parts the last scale is predicted.
    given: for how many first steps the tokens are given, not drawn; they are never replaced by mixtures.
    stop_after: how many scales are made; ``None`` for all. The residual belongs to the last.
    """

    def __init__(
        self,
        transformer: HARTTransformer,
        tokenizer: HARTTokenizer,
        text: TextFeatures,
        branches: tuple[str, ...] = (CONDITIONAL,),
        *,
        noise: HARTNoise,
        guidance: float | Sequence[float] = 0.0,
        smooth: Mixture | None = None,
        residual: bool = True,
        mask_iterations: int = 1,
        given: int = 0,
        stop_after: int | None = None,
    ) -> None:
        self.transformer, self.tokenizer, self.branches = transformer, tokenizer, branches
        self.noise, self.smooth, self.given = noise, smooth, given
        self.residual = residual
        self.guidance = guidance if UNCONDITIONAL in branches else None
        config, schedule = transformer.config, transformer.schedule
        self.num_steps = schedule.num_steps if stop_after is None else stop_after
        self.masked = masked_counts(schedule.lengths[-1], mask_iterations)
        transformer.check_text(text)
        text = text.to(transformer.device)
        rows = {CONDITIONAL: text, UNCONDITIONAL: transformer.null_text(text)}
        self.condition = transformer.condition(TextFeatures.cat([rows[b] for b in branches]))
        self.caches = KVCache.layers(
            len(transformer.blocks),
            len(branches) * len(text),
            config.num_heads,
            self._remembered(),
            config.head_dim,
            dtype=transformer.dtype,
            device=transformer.device,
        )
        self.inputs: Tensor | None = None  # (B, l, z), the next map; the first segment is the text
        self.hidden = self.condition.tokens[:, :0]  # (rows, l, C), the last block's output
        shape = (len(text), config.z_channels, *schedule.final)
        self.f_hat = torch.zeros(shape, device=transformer.device)

    @property
    def schedule(self) -> ScaleSchedule:
        return self.transformer.schedule

    @property
    def feature_map(self) -> Tensor:
        return self.f_hat

    def _remembered(self) -> int:
        """Tokens that a later step attends to: all but those of the last."""
        config, schedule = self.transformer.config, self.schedule
        if self.num_steps == schedule.num_steps:
            return config.sequence_length - self.masked[-2]
        if self.num_steps == 1:
            return 0
        # The text stands in for the first scale.
        return config.context_token + schedule.offsets[self.num_steps - 1] - schedule.offsets[1]

    def steps(self) -> list[GuidanceStep]:
        grids, last = self.schedule.grids, self.schedule.num_steps - 1
        steps = [GuidanceStep(k, grids) for k in range(min(last, self.num_steps))]
        if self.num_steps <= last:
            return steps
        if len(self.masked) == 2:  # all at once
            return [*steps, GuidanceStep(last, grids)]
        order = self.noise.order.to(self.transformer.device)
        for before, after in zip(self.masked, self.masked[1:], strict=False):
            steps.append(GuidanceStep(last, grids, order[:, after:before].sort(dim=1).values))
        return steps

    # ------------------------------------------------------------------ logits

    def predict(self, step: GuidanceStep) -> dict[str, Tensor]:
        x, rotation = self._segment(step)
        for block, cache in zip(self.transformer.blocks, self.caches, strict=True):
            x = block(x, rotation, self.condition.block, cache=cache)
        self.hidden = x if step.index else x[:, -1:]  # the last text token predicts the first scale
        logits = self.transformer.classify(self.hidden, self.condition)  # (rows, l, V)
        return dict(zip(self.branches, logits.chunk(len(self.branches)), strict=True))

    def _segment(self, step: GuidanceStep) -> tuple[Tensor, Rotation]:
        """What is new in the sequence ``(rows, l, C)``, and its positions."""
        if self.inputs is None:
            return self.transformer.embed_text(self.condition)
        count, inputs, cells = len(self.branches), self.inputs, step.positions
        if cells is not None:
            inputs = inputs.gather(1, cells[..., None].expand(-1, -1, inputs.shape[2]))
            cells = cells.repeat(count, 1)
        x = self.transformer.embed_map(inputs, step.index).repeat(count, 1, 1)
        return x, self.transformer.map_rotation(self.condition, step.index, cells)

    # ------------------------------------------------------------------ tokens

    def accept(self, step: GuidanceStep, tokens: Tensor, guided: Tensor) -> None:
        quantizer, schedule = self.tokenizer.quantize, self.schedule
        drawn = quantizer.embedding(tokens).float()  # (B, l, z)
        vectors = drawn
        if self.smooth is not None and step.index >= self.given:
            vectors = self.smooth(guided, step, quantizer.embedding.weight.float())
        following = step.index + 1
        if following == schedule.num_steps and self.residual:
            vectors = vectors + self._draw_residual(step, drawn)
        codes = self._on_grid(vectors, step).transpose(1, 2).unflatten(2, step.grid)
        # A new sum, not an update in place: a step callback may keep the one it was shown.
        self.f_hat = self.f_hat + quantizer.term(codes, step.index, schedule)
        if following < self.num_steps:
            self.inputs = shrink(self.f_hat, schedule[following]).flatten(2).transpose(1, 2)

    def _on_grid(self, vectors: Tensor, step: GuidanceStep) -> Tensor:
        """A part of a grid ``(B, l, z)`` among zeros ``(B, h w, z)``; the parts of the last scale add up."""
        if step.positions is None:
            return vectors
        h, w = step.grid
        empty = vectors.new_zeros(len(vectors), h * w, vectors.shape[2])
        return empty.scatter(1, step.positions[..., None].expand_as(vectors), vectors)

    def _draw_residual(self, step: GuidanceStep, codes: Tensor) -> Tensor:
        """What the codes of the last scale leave out, ``(B, l, z)``."""
        noise = self.noise.residual.to(codes.device)
        if step.positions is not None:
            index = step.positions[None, :, :, None].expand(len(noise), -1, -1, noise.shape[3])
            noise = noise.gather(2, index)
        rows = codes.repeat(len(self.branches), 1, 1)
        condition = self.transformer.residual_condition(self.hidden, rows)
        return self.transformer.diffloss.sample(condition, self.guidance, noise)


def masked_counts(cells: int, iterations: int) -> list[int]:
    """How many of a scale's cells are still to come before each iteration, and after the last.

    The published cosine schedule: ``floor(cells cos(pi/2 i/I))`` after i of I iterations, but at least one
    fewer than before. Raises InvalidArgumentError unless iterations is from 1 to the number of cells.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or not 1 <= iterations <= cells:
        raise InvalidArgumentError(
            f"mask_iterations must be a whole number from 1 to {cells}, the cells of the last scale, "
            f"got {iterations!r}"
        )
    counts = [cells]
    for i in range(1, iterations):
        left = math.floor(cells * math.cos(math.pi / 2 * i / iterations))
        counts.append(max(1, min(counts[-1] - 1, left)))
    return [*counts, 0]
