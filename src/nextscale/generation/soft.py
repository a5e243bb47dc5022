"""Mixtures of codes in place of drawn ones: ``more_smooth`` of VAR and HART, for looks, not for measuring."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nextscale.generation.noise import Noise, Stream, exponential
from nextscale.generation.race import ENTRIES_AT_ONCE
from nextscale.generation.tokens import Drawer, Filters
from nextscale.guidance.base import GuidanceStep


def mix_codes(filtered: Tensor, exponential: Tensor, ratio: float, codebook: Tensor) -> Tensor:
    """A Gumbel-softmax mixture of codes, sharper at finer scales.

    filtered: logits ``(B, l, V)``, removed entries at minus infinity, which have no share. exponential: draws
    of Exp(1), same shape. ratio: the place of the step, from 0 to 1. codebook: ``(V, z)`` float32.
    Returns ``softmax((filtered (1 + ratio) - log(exponential)) / tau) @ codebook``, ``(B, l, z)``, with
    ``tau = max(0.27 (1 - 0.95 ratio), 0.005)``.
    """
    tau = max(0.27 * (1 - 0.95 * ratio), 0.005)
    return ((filtered * (1 + ratio) - exponential.log()) / tau).softmax(-1) @ codebook


class SoftCodes:
    """:func:`mix_codes` with the draws that belong to the images of a batch.

    filters: what the drawn tokens go through as well.
    source: the images' own numbers, or a generator that the batch shares (parity with the official code).
    hold_last: give the last step the ratio of the one before it, as HART does.
    """

    def __init__(self, filters: Filters, source: Noise | torch.Generator, *, hold_last: bool = False) -> None:
        self.filters, self.source, self.hold_last = filters, source, hold_last

    @classmethod
    def of(cls, draw: Drawer, *, hold_last: bool = False) -> SoftCodes:
        """For one drawer: from its generator in official draws, else from the images' own numbers."""
        source = draw.generator if draw.sampler == "multinomial" else draw.noise
        return cls(draw.filters, source, hold_last=hold_last)

    def __call__(self, guided: Tensor, step: GuidanceStep, codebook: Tensor) -> Tensor:
        """Guided logits ``(B, l, V)`` -> code vectors ``(B, l, z)``."""
        batch, length, vocabulary = guided.shape
        last = step.num_steps - 1
        ratio = min(step.index, last - self.hold_last) / last
        cells = step.positions
        if cells is None:
            cells = torch.arange(length, device=guided.device).expand(batch, -1)
        # Some cells at a time, since numbers and filters take several times the memory of the logits.
        count = max(1, min(-(-length // 8), ENTRIES_AT_ONCE // (batch * vocabulary)))
        numbers = self._exponential(guided, cells, count, step.index)
        mixed = [
            mix_codes(self.filters(some, step.index), drawn, ratio, codebook)
            for some, drawn in zip(guided.split(count, dim=1), numbers, strict=True)
        ]
        return torch.cat(mixed, dim=1)

    def _exponential(self, guided: Tensor, cells: Tensor, count: int, step: int) -> Iterator[Tensor]:
        """Draws of Exp(1) for so many cells at a time, float32 ``(B, count, V)``."""
        if isinstance(self.source, torch.Generator):  # in one call, as the official code draws
            drawn = torch.empty(guided.shape, device=self.source.device).exponential_(generator=self.source)
            yield from drawn.to(guided.device).split(count, dim=1)
            return
        for some in cells.split(count, dim=1):
            words = self.source.words(Stream.MIXTURES, step, some, guided.shape[2])
            yield exponential(words).float().to(guided.device)
