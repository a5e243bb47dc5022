"""Mixtures of codes in place of drawn ones: ``more_smooth`` of VAR and HART, for looks, not for measuring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
    generators: one shared by the batch (parity with the official code), or one per image.
    hold_last: give the last step the ratio of the one before it, as HART does.
    """

    def __init__(
        self, filters: Filters, generators: Sequence[torch.Generator], *, hold_last: bool = False
    ) -> None:
        self.filters, self.generators, self.hold_last = filters, generators, hold_last

    @classmethod
    def of(cls, draw: Drawer, *, hold_last: bool = False) -> SoftCodes:
        """For one drawer: from its generator in official draws, else from the images' own."""
        shared = draw.sampler == "multinomial"
        generators = [draw.generator] if shared else draw.noise.generators
        return cls(draw.filters, generators, hold_last=hold_last)

    def __call__(self, guided: Tensor, step: GuidanceStep, codebook: Tensor) -> Tensor:
        """Guided logits ``(B, l, V)`` -> code vectors ``(B, l, z)``."""
        filtered = self.filters(guided, step.index)
        last = step.num_steps - 1
        ratio = min(step.index, last - self.hold_last) / last
        per_image = filtered.split(1) if len(self.generators) > 1 else (filtered,)
        exponential = torch.cat(
            [
                torch.empty(f.shape, device=g.device).exponential_(generator=g).to(f.device)
                for f, g in zip(per_image, self.generators, strict=True)
            ]
        )
        return mix_codes(filtered, exponential, ratio, codebook)
