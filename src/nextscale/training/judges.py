"""What judges a tokenizer's reconstructions beside the error of their pixels, and with which weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.training.adversarial import Adversary, AdversarySettings
from nextscale.training.perceptual import PerceptualDistance, open_perceptual

NONE = "none"
LARGEST = 1e4  # weight that a term can get, as published


@dataclass(frozen=True)
class JudgeSettings:
    """Which terms a recipe has; by default none.

    perceptual: whose features are compared, see :func:`~nextscale.training.perceptual.open_perceptual`.
    perceptual_weight: see :class:`Judges`. adversary: settings of the discriminator.
    """

    perceptual: str | Path | None = None
    perceptual_weight: float = 0.5
    adversary: AdversarySettings | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.perceptual_weight) and self.perceptual_weight > 0):
            raise InvalidArgumentError(
                f"the perceptual weight must be above 0, got {self.perceptual_weight!r}; for no such term "
                f"leave out the features"
            )

    def changed(self, perceptual: str | Path | None, adversarial: float | None) -> JudgeSettings:
        """Replace features (``"none"`` for none) or the adversarial weight, where given."""
        new = self
        if perceptual is not None:
            new = replace(new, perceptual=None if perceptual == NONE else perceptual)
        if adversarial is not None:
            adversary = replace(self.adversary or AdversarySettings(), weight=adversarial)
            new = replace(new, adversary=adversary if adversarial else None)
        return new

    @property
    def origin(self) -> dict[str, str]:
        """Say for a checkpoint what they are, by the argument each can be changed with."""
        weight = 0.0 if self.adversary is None else self.adversary.weight
        return {"perceptual": str(self.perceptual or NONE), "adversarial": f"{weight:g}"}

    def open(self, device: torch.device) -> Judges | None:
        """Load and make what the terms need; ``None`` without terms."""
        if self.perceptual is None and self.adversary is None:
            return None
        distance = None if self.perceptual is None else open_perceptual(self.perceptual, device)
        adversary = None if self.adversary is None else Adversary(self.adversary, device)
        return Judges(distance, self.perceptual_weight, adversary)


@dataclass(frozen=True)
class Judges:
    """A perceptual and an adversarial term.

    Both are weighted by the lengths of gradients at the decoder's last layer (the adaptive weight of VQGAN,
    arXiv 2012.09841, equation 7), so that a weight means the same whatever features and discriminator are.

    perceptual: a distance of features. perceptual_weight: length of its gradient, in lengths of the error's.
    adversary: a discriminator that learns along; its weight counts lengths of both terms' gradient before it.
    """

    perceptual: PerceptualDistance | None = None
    perceptual_weight: float = 0.5
    adversary: Adversary | None = None

    def loss(
        self, error: Tensor, recon: Tensor, images: Tensor, last: Tensor, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all terms, with its gradients, and what to log of it.

        error: of the pixels, a scalar. recon, images: ``(B, 3, H, W)`` in [-1, 1]. last: weight of the
        decoder's last layer. progress: share of the run that is done.

        Gradients with respect to the reconstruction are made term by term, once each, and their sum alone
        goes on through the model.
        """
        (gradient,) = torch.autograd.grad(error, recon, retain_graph=True)
        value, figures = error.detach(), dict[str, Tensor]()
        leaf = recon.detach().float().requires_grad_()
        if self.perceptual is not None:
            distance = self.perceptual(leaf, images)
            (term,) = torch.autograd.grad(distance, leaf)
            weight = self.perceptual_weight * _lengths(recon, last, gradient, term)
            value, gradient = value + weight * distance.detach(), gradient + weight * term
            figures |= {"perceptual": distance.detach(), "perceptual_weight": weight}
        own: list[tuple[Tensor, Tensor]] = []
        if self.adversary is not None and self.adversary.begin(progress):
            judgement = self.adversary.judge(leaf, images)
            weight = self.adversary.weight(progress) * _lengths(recon, last, gradient, judgement.gradient)
            value, gradient = value + weight * judgement.term, gradient + weight * judgement.gradient
            own = list(zip(self.adversary.network.parameters(), judgement.own, strict=True))
            figures |= {"adversarial": judgement.term, "adversarial_weight": weight}
            figures["discriminator"] = judgement.loss
        return carrying(value, [(recon, gradient.to(recon.dtype)), *own]), figures


def _lengths(recon: Tensor, last: Tensor, before: Tensor, term: Tensor) -> Tensor:
    """How much longer one gradient is than another at the last layer, at most :data:`LARGEST`.

    before, term: gradients with respect to the reconstruction.
    """

    def length(gradient: Tensor) -> Tensor:
        (there,) = torch.autograd.grad(recon, last, gradient.to(recon.dtype), retain_graph=True)
        return there.float().norm()

    return (length(before) / length(term).clamp_min(1e-12)).clamp(max=LARGEST)


class _Carried(torch.autograd.Function):
    """A value whose gradients with respect to some tensors are given."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *[outer[0] * g for g in ctx.gradients]


def carrying(value: Tensor, gradients: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The scalar ``value`` with these gradients, ``(tensor, gradient)`` each: made before, not again."""
    tensors = (t for t, _ in gradients)
    result: Tensor = _Carried.apply(value, [g for _, g in gradients], *tensors)  # type: ignore[no-untyped-call]
    return result
