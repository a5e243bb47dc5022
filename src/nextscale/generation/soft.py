"""Mixtures of codes in place of drawn ones: ``more_smooth`` of VAR and HART, for looks, not for measuring."""

from __future__ import annotations

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
        filtered = self.filters(guided, step.index)
        last = step.num_steps - 1
        ratio = min(step.index, last - self.hold_last) / last
        return mix_codes(filtered, self._exponential(filtered, step), ratio, codebook)

    def _exponential(self, filtered: Tensor, step: GuidanceStep) -> Tensor:
        """Draws of Exp(1), float32 of the same shape."""
        if isinstance(self.source, torch.Generator):
            drawn = torch.empty(filtered.shape, device=self.source.device).exponential_(generator=self.source)
        else:
            cells = step.positions
            if cells is None:
                cells = torch.arange(filtered.shape[1], device=filtered.device)[None]
            # Some cells at a time, since the numbers are made in 64 bits.
            count = min(-(-filtered.shape[1] // 8), ENTRIES_AT_ONCE // (len(filtered) * filtered.shape[2]))
            words = (
                self.source.words(Stream.MIXTURES, step.index, some, filtered.shape[2])
                for some in cells.split(max(1, count), dim=1)
            )
            drawn = torch.cat([exponential(some).float() for some in words], dim=1)
        return drawn.to(filtered.device)
